"""`kdcache doctor` checks whether this machine can run kdcache. Each group of checks is a file."""
