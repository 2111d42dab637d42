"""Look at what was opened: warnings where it is probably not what the user meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kdcache.data.classes import similar_names
from kdcache.data.source import LeftOut, Source, Split
from kdcache.data.split_names import split_called

MAX_CLASS_FRACTION = 0.95
"""A class with a larger fraction of the training images is reported."""

MIN_JUDGED_IMAGES = 20
"""Fewer images say nothing about the sizes of classes."""

_MAX_SHOWN = 20
_MAX_SHOWN_FILES = 3


def describe(source: Source, splits: Mapping[str, Split]) -> list[str]:
    """Return warnings about a source, one sentence each: what is left out, and what looks odd.

    Args:
        source: an opened source.
        splits: the splits that are packed, with labels in [0, C).
    """
    return [*map(describe_left_out, source.left_out), *_odd_classes(source, splits)]


def describe_left_out(left_out: LeftOut) -> str:
    """Return one line: how many files are left out, why, and the first of them."""
    names = left_out.names
    shown = ", ".join(names[:_MAX_SHOWN_FILES])
    more = f" and {len(names) - _MAX_SHOWN_FILES:,} more" if len(names) > _MAX_SHOWN_FILES else ""
    remedy = f". {left_out.remedy}" if left_out.remedy else ""
    files = "file is" if len(names) == 1 else "files are"
    return f"{len(names):,} {files} left out ({left_out.why}): {shown}{more}{remedy}"


def _odd_classes(source: Source, splits: Mapping[str, Split]) -> Iterator[str]:
    names = source.class_names
    if len(names) == 1:
        yield (
            f"{source.where} has only one class, {names[0]}, expected at least two. Is it the "
            "folder that holds the class folders?"
        )
    if called := [name for name in names if split_called(name)]:
        yield (
            f"{source.where} has classes that are called like splits: {', '.join(called)}. If they "
            "are splits, name them train and val, and nothing else beside them"
        )
    if similar := similar_names(names):
        one, other = similar[0]
        yield (
            f"{source.where} has {len(similar):,} pairs of classes whose names are nearly equal, "
            f"such as {one} and {other}. If they are one class, merge them"
        )
    for split, images in splits.items():
        counts = np.bincount(images.labels, minlength=len(names))
        empty = np.flatnonzero(counts == 0)
        if len(empty) and split == "train":
            yield _without_image(split, len(empty), [names[i] for i in empty[:_MAX_SHOWN]])
        largest = int(counts.argmax())
        total = len(images.labels)
        if (
            len(names) > 1
            and total >= MIN_JUDGED_IMAGES
            and counts[largest] > MAX_CLASS_FRACTION * total
        ):
            yield (
                f"{int(counts[largest]):,} of {total:,} images of {split} are of the class "
                f"{names[largest]}. Is it a folder of unsorted images?"
            )


def _without_image(split: str, count: int, shown: Sequence[str]) -> str:
    """Return "2 classes have no image in train: ant, cow"."""
    more = f" and {count - len(shown):,} more" if count > len(shown) else ""
    classes = "class has" if count == 1 else "classes have"
    return f"{count:,} {classes} no image in {split}: {', '.join(shown)}{more}"
