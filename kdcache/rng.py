"""Create an independent random generator for each purpose, never `seed + epoch`.

Views do not draw from here: they are a function of the sample, evaluated inside the decoder
(`kdcache.data.philox`).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import numpy as np

_P = ParamSpec("_P")
_R = TypeVar("_R")


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


def keeps_torch_rng(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return a function that leaves torch's global generators as they were before the call.

    A caller's own random numbers then do not depend on whether this library ran in between.
    """

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with _restored_torch_rng():
            return function(*args, **kwargs)

    return wrapped


@contextmanager
def _restored_torch_rng() -> Iterator[None]:
    import torch

    # Reading the generators of the GPUs would initialise CUDA in a process that may not use it.
    had_cuda = torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if had_cuda else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        if not had_cuda and torch.cuda.is_initialized():
            # What the first use of CUDA after the caller's own torch.manual_seed would have given.
            torch.cuda.manual_seed_all(torch.initial_seed())
