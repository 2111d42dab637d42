"""All of FFCV that kdcache uses, from the one file that imports it.

`import ffcv` sets the number of threads of torch and of numba to 1 for the whole process, where a
teacher or a student then works on one core. That is undone here, so no other file imports FFCV.
"""

from __future__ import annotations

import numba
import torch

_threads = torch.get_num_threads(), numba.get_num_threads()

from ffcv import libffcv  # noqa: E402
from ffcv.fields import IntField, RGBImageField  # noqa: E402
from ffcv.loader import Loader, OrderOption  # noqa: E402
from ffcv.loader import loader as loader_module  # noqa: E402
from ffcv.memory_managers.os_cache import OSCacheContext, OSCacheManager  # noqa: E402
from ffcv.pipeline import Compiler, PipelineSpec  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402
from ffcv.pipeline.operation import Operation  # noqa: E402
from ffcv.pipeline.state import State  # noqa: E402
from ffcv.reader import Reader  # noqa: E402
from ffcv.types import (  # noqa: E402
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    TYPE_ID_HANDLER,
    FieldDescType,
    HeaderType,
    get_metadata_type,
)

torch.set_num_threads(_threads[0])
numba.set_num_threads(_threads[1])

__all__ = [
    "ALLOC_TABLE_TYPE",
    "CURRENT_VERSION",
    "TYPE_ID_HANDLER",
    "AllocationQuery",
    "Compiler",
    "FieldDescType",
    "HeaderType",
    "IntField",
    "Loader",
    "OSCacheContext",
    "OSCacheManager",
    "Operation",
    "OrderOption",
    "PipelineSpec",
    "RGBImageField",
    "Reader",
    "State",
    "get_metadata_type",
    "libffcv",
    "loader_module",
]
