"""`python -m kdcache`, which torchrun needs."""

import sys

from kdcache.cli import main

if __name__ == "__main__":
    sys.exit(main())
