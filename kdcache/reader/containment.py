"""What FFCV does to a process when one of its loaders is made, undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from kdcache.ffcv_names import Compiler, OSCacheContext, OSCacheManager, Reader, loader_module


class MappedFile(OSCacheManager):
    """FFCV's memory map alone.

    FFCV would fill Python dicts with every page (3 s and 119 MB for a million samples), and
    compile a reading function whose types it changes for the whole process afterwards, so that
    functions compiled before cannot be found again. Our decoder reads the map by itself.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.ptrs = self.sizes = np.empty(0, dtype=np.uint64)
        self.context = OSCacheContext(self)

    def compile_reader(self) -> None:
        """Compile nothing."""


@contextmanager
def ffcv_contained() -> Iterator[None]:
    """Make a Loader without what it does to the rest of the process.

    It sets torch's thread count, takes its memory manager from a name in its module, and compiles
    what is compiled already.
    """
    threads = torch.get_num_threads()
    original = loader_module.OSCacheManager
    loader_module.OSCacheManager = MappedFile
    Compiler.set_enabled(False)
    try:
        yield
    finally:
        Compiler.set_enabled(True)
        loader_module.OSCacheManager = original
        torch.set_num_threads(threads)
