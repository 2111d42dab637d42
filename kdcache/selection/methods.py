"""The selection methods by name. A new method is one new file and one line here.

A method is a function `method(group, quota, context) -> kept`: of one group of samples, sorted by
score, it returns `quota` of them. `kdcache.selection.context` has the types.
"""

from __future__ import annotations

from typing import NamedTuple

from kdcache.registry import Registry


class MethodEntry(NamedTuple):
    """A line of the registry."""

    place: str
    """The method's "module:function"."""
    reads_scores: bool = True
    """False: groups are in random order, and no score is needed."""
    draws: bool = False
    """True: the method uses random numbers, so that --seed has a meaning."""
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

METHODS = Registry("method", {name: entry.place for name, entry in _ENTRIES.items()})
"""Name -> method."""


def method_entry(name: str) -> MethodEntry:
    """Return the line of a method; one of the user's own reads scores and may draw."""
    return _ENTRIES.get(name, MethodEntry(name, draws=True))


def owners_of_options() -> dict[str, tuple[str, ...]]:
    """Return the options that only one method reads, by the method's name."""
    return {name: entry.options for name, entry in _ENTRIES.items() if entry.options}


def drawing_methods() -> list[str]:
    """Return the names of the methods that use random numbers."""
    return [name for name, entry in _ENTRIES.items() if entry.draws]
