"""Create an independent random generator for each purpose, never `seed + epoch`.

Views do not draw from here: they are a function of the sample, evaluated inside the decoder
(`kdcache.data.philox`).
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, stream: str, *key: int) -> np.random.Generator:
    """Return the generator of one purpose, such as ("order", epoch) or ("split", label).

    Args:
        seed: the user's seed, >= 0.
        stream: name of the purpose; different names give independent draws.
        key: further integers >= 0 that distinguish draws of one purpose.
    """
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), *key])


def torch_seed(seed: int, stream: str) -> int:
    """Return a 63-bit seed for torch's own generator, for one purpose."""
    return int(generator(seed, stream).integers(2**63 - 1))
