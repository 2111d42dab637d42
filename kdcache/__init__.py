"""kdcache: run the teacher once; distil students from its cached logits on pruned data.

In: images and a teacher. Out: a logit store, subsets, and students that never call the teacher.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers; at run time `__getattr__` loads them when they are used
    from kdcache.loader.distill import DistillLoader
    from kdcache.selection.subset import Subset
    from kdcache.store.logit_store import LogitStore

__all__ = ["DistillLoader", "LogitStore", "Subset"]

__version__ = "0.1.0"

_HOMES = {
    "DistillLoader": "kdcache.loader.distill",
    "LogitStore": "kdcache.store.logit_store",
    "Subset": "kdcache.selection.subset",
}


def __getattr__(name: str) -> object:
    """Load the names of the library contract when they are first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kdcache' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
