"""The selection methods by name. A new method is one new file and one line here.

A method is a function `method(group, quota, context) -> kept`. It gets a group of samples, sorted
by score, and returns the ids of `quota` of them. `kdcache.selection.context` defines the types.
"""

from __future__ import annotations

from typing import NamedTuple

from kdcache.registry import Registry


class MethodEntry(NamedTuple):
    """An entry of the registry."""

    import_path: str
    """`module:function`."""
    reads_scores: bool = True
    """False: the groups are in random order and no score is needed."""
    draws: bool = False
    """True: the method uses random numbers, so it depends on --seed."""
    options: tuple[str, ...] = ()
    """Options that only this method reads."""


_ENTRIES = {
    "random": MethodEntry("kdcache.selection.windows:easy", reads_scores=False, draws=True),
    "easy": MethodEntry("kdcache.selection.windows:easy"),
    "hard": MethodEntry("kdcache.selection.windows:hard"),
    "medium": MethodEntry("kdcache.selection.windows:medium"),
    "window": MethodEntry("kdcache.selection.windows:window", options=("start",)),
    "stratified": MethodEntry(
        "kdcache.selection.stratified:stratified", draws=True, options=("cut",)
    ),
    "beta": MethodEntry(
        "kdcache.selection.beta:beta", draws=True, options=("peak", "concentration")
    ),
    "class-adaptive": MethodEntry("kdcache.selection.windows:easy", reads_scores=False, draws=True),
}

METHODS = Registry("method", {name: entry.import_path for name, entry in _ENTRIES.items()})
"""Name -> function of the method."""


def method_entry(name: str) -> MethodEntry:
    """Return the entry of a method. A user's method reads scores and may use random numbers."""
    return _ENTRIES.get(name, MethodEntry(name, draws=True))


def owners_of_options() -> dict[str, tuple[str, ...]]:
    """Return method -> the options that only this method reads."""
    return {name: entry.options for name, entry in _ENTRIES.items() if entry.options}


def drawing_methods() -> list[str]:
    """Return the names of the methods that use random numbers."""
    return [name for name, entry in _ENTRIES.items() if entry.draws]
