"""Check that a teacher has the classes of the data, in the same order.

A teacher with another class order gives wrong logits, and nothing else reports it. This module
compares names if both sides have comparable ones. A packed data set has the names of its folders;
for ImageNet these are WordNet ids. Publishers use English words, several for each class.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from kdcache.data.classes import are_numbers
from kdcache.errors import TeacherError
from kdcache.progress import logger
from kdcache.teacher.published import ClassNames, PublishedWeights

IMAGENET_CLASSES = 1_000

MIN_KNOWN_FRACTION = 0.5
"""The names are compared if the teacher knows at least this fraction of the data's names."""

_WORDNET_ID = re.compile(r"n\d{8}")


@cache
def imagenet_names() -> tuple[ClassNames, ...]:
    """Return the words per ImageNet class, and the WordNet ids if timm is installed."""
    from torchvision import models

    words = models.get_model_weights("resnet18").DEFAULT.meta["categories"]
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return tuple((word,) for word in words)
    about = ImageNetInfo()
    return tuple(
        (word, number, *about.label_name_to_description(number).split(","))
        for word, number in zip(words, about.label_names(), strict=True)
    )


def require_same_classes(names: Sequence[str], teacher: PublishedWeights) -> bool:
    """Compare the names of the data's classes with a teacher's.

    Args:
        names: class names of the data, one for each class of the teacher.
        teacher: published weights.

    Returns:
        True if the names agree; False if they cannot be compared, which is logged.

    Raises:
        TeacherError: if a class differs; names the first.
    """
    known = imagenet_names() if teacher.is_imagenet else teacher.class_names
    if known is None:
        return _log_incomparable(teacher, "its classes have no names")
    if are_numbers(names):
        return _log_incomparable(teacher, f"numbers such as {names[0]!r} say nothing of an order")
    published = [{_plain(name) for name in of_class} for of_class in known]
    if teacher.is_imagenet and all(map(_is_id, names)) and not any(map(_is_id, known[0])):
        return _require_sorted_ids(names, teacher)
    words = [{_plain(part) for part in (name, *name.split(","))} for name in names]
    everywhere = set().union(*published)
    num_known = sum(not everywhere.isdisjoint(of_class) for of_class in words)
    if num_known < MIN_KNOWN_FRACTION * len(names):
        return _log_incomparable(
            teacher,
            f"it knows {num_known} of the data's {len(names):,} names, such as {names[0]!r}, "
            f"and calls that class {known[0][0]!r}",
        )
    for label, (ours, theirs) in enumerate(zip(words, published, strict=True)):
        if ours.isdisjoint(theirs):
            raise _class_mismatch(label, names[label], ", ".join(known[label][:2]), teacher)
    return True


def require_same_names(where: str, theirs: Sequence[str] | None, ours: Sequence[str]) -> bool:
    """Compare the class names that a file of weights states with those of the data, in order.

    Names that are numbers are never evidence that two lists agree, only that they do not.

    Args:
        where: path of the file, for messages.
        theirs: its class names; None if it states none.
        ours: class names of the data, as many.

    Returns:
        True if the names agree; False if they cannot be compared, of which a warning tells.

    Raises:
        TeacherError: if a class differs; names the first.
    """
    why = None
    if theirs is None:
        why = "it states no class names"
    elif [_plain(name) for name in theirs] == [_plain(name) for name in ours]:
        why = "both name their classes by numbers" if are_numbers(ours) else None
    elif are_numbers(theirs) != are_numbers(ours):
        why = f"it calls class 0 {theirs[0]!r}, and the data {ours[0]!r}"
    else:
        pairs = enumerate(zip(theirs, ours, strict=True))
        label, (their, our) = next(
            (n, pair) for n, pair in pairs if _plain(pair[0]) != _plain(pair[1])
        )
        is_order = set(map(_plain, theirs)) == set(map(_plain, ours))
        order = "their order differs" if is_order else "the classes differ"
        raise TeacherError(
            f"class {label} of the packed data is {our!r}, but {their!r} in {where}: {order}. Pack "
            "the data with the same classes, or train a teacher: kdcache train-teacher"
        )
    if why is not None:
        logger.warning(
            "the classes of the data and of %s are compared by number only: %s. Check their order",
            where,
            why,
        )
    return why is None


def _is_id(name: str) -> bool:
    return _WORDNET_ID.fullmatch(name) is not None


def _require_sorted_ids(names: Sequence[str], teacher: PublishedWeights) -> bool:
    """Check that WordNet ids are sorted, as ImageNet's are; only timm has a list of them."""
    for label, (name, in_order) in enumerate(zip(names, sorted(names), strict=True)):
        if name != in_order:
            raise _class_mismatch(label, name, in_order, teacher)
    logger.info(
        "the data's %d classes are WordNet ids in sorted order, as ImageNet's are. To compare them "
        "with ImageNet's own list, install timm: pip install 'kdcache[timm]'",
        len(names),
    )
    return True


def _class_mismatch(
    label: int, name: str, expected: str, teacher: PublishedWeights
) -> TeacherError:
    return TeacherError(
        f"class {label} of the packed data is {name!r}, expected {expected!r} as in "
        f"{teacher.arch}: the classes differ, or their order does. Pack the data with the "
        "teacher's class names in its order, or let module:callable return the model with its "
        "classes reordered"
    )


def _log_incomparable(teacher: PublishedWeights, why: str) -> bool:
    logger.info(
        "the classes of the data and of %s are compared by number only: %s", teacher.arch, why
    )
    return False


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
