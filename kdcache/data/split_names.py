"""Recognise splits by the names of folders, files and tables, in any case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

EVALUATION_NAMES = ("val", "valid", "validation", "dev", "eval", "test")
"""Names of an evaluation split, in order of preference."""

_WORD = rf"(train|{'|'.join(EVALUATION_NAMES)})(?:ing)?"
_ENDING = r"(?:[-_ ]?(?:set|split|data|images|imgs|samples))?"
_WHOLE = re.compile(_WORD + _ENDING)
_INSIDE = re.compile(rf"(?<![a-z0-9]){_WORD}{_ENDING}(?![a-z])")
_UNLABELLED = re.compile(r"(?<![a-z])(extra|unlabell?ed|unsup(ervised)?)(?![a-z])")

Found = TypeVar("Found")


def split_called(name: str) -> str | None:
    """Return the split that a folder or table is called, such as `train` for "Training_set"."""
    match = _WHOLE.fullmatch(name.strip().lower())
    return None if match is None else match[1]


def split_within(name: str) -> tuple[str, str] | None:
    """Return the split that a longer name contains, and the text before it.

    "cifar10-train-0001.parquet" gives ("train", "cifar10-").
    """
    match = _INSIDE.search(name.lower())
    return None if match is None else (match[1], name[: match.start()])


def is_called_unlabelled(name: str) -> bool:
    """Return whether a name says that the data are no training split, such as "extra"."""
    return _UNLABELLED.search(name.lower()) is not None


def choose_splits(found: Mapping[str, Found]) -> tuple[dict[str, Found], list[str]]:
    """Choose `train` and `val` from the splits that were found.

    Returns:
        `train` and `val`, in this order, as far as they were found; and the names of further
        evaluation splits.
    """
    evaluations = [name for name in EVALUATION_NAMES if name in found]
    chosen = {"train": found["train"]} if "train" in found else {}
    if evaluations:
        chosen["val"] = found[evaluations[0]]
    return chosen, evaluations[1:]


def group_by_name(names: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Group names by the split that they are called; return the groups and the other names."""
    found: dict[str, list[str]] = {}
    others: list[str] = []
    for name in names:
        split = split_called(name)
        if split is None:
            others.append(name)
        else:
            found.setdefault(split, []).append(name)
    return found, others
