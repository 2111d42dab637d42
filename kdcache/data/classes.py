"""Give every sample the label of its class's name, however the parts of a source number them.

The number of a class means nothing by itself. Parts (splits, shards, another source for evaluation)
are compared by the names of their classes, or refused. Without names, every number from 0 must
occur, unless the user says what the numbers mean.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.data.source import RelabelledSplit, Source, Split
from kdcache.errors import ConfigError, DatasetError
from kdcache.options import MAX_CLASSES

NAMES_FILES = ("classes.txt", "classnames.txt")
"""Files beside shards that list the class names, one per line, in label order."""

_MAX_SHOWN = 20

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """A part of a source, with its own numbers of classes."""

    where: str
    """Path or name of the part, for messages."""
    labels: Labels
    """(n,) numbers of the part's own."""
    names: Sequence[str] | None
    """Class names of the part, in the order of its numbers; None if it states none."""


@dataclass(frozen=True)
class Unified:
    """The parts of a source with common labels."""

    class_names: list[str]
    """Empty if no part states names."""
    labels: dict[str, list[Labels]]
    """Split -> labels of each part."""
    notes: list[str]


def unify(parts: Mapping[str, Sequence[Part]]) -> Unified:
    """Map the labels of all parts to one list of classes, by name.

    The classes are those of the first training part, then those that later training parts add.
    Evaluation parts add no class.

    Args:
        parts: split -> its parts.

    Raises:
        DatasetError: if some parts with images name classes and others do not, if lists that differ
            name a class twice, if a label has no name, or if an evaluation part has images of a
            class that is not trained.
    """
    filled = [part for of_split in parts.values() for part in of_split if len(part.labels)]
    named = [part for part in filled if part.names is not None]
    if not named:
        return Unified([], {s: [p.labels for p in of_split] for s, of_split in parts.items()}, [])
    if len(named) < len(filled):
        nameless = next(part for part in filled if part.names is None)
        raise DatasetError(
            f"{nameless.where} names no classes, but {named[0].where} does: whether label "
            f"{int(nameless.labels[0])} means the same class in both is not known. Write the "
            f"names, one per line in label order, to {NAMES_FILES[0]} beside {nameless.where}"
        )
    for part in named:
        _require_names(part)
    common = _common_names(parts)
    label_of = {name: label for label, name in enumerate(common)}
    notes: list[str] = []
    labels: dict[str, list[Labels]] = {}
    for split, of_split in parts.items():
        labels[split] = []
        for part in of_split:
            if not len(part.labels) or part.names is None or _plain(part.names) == common:
                labels[split].append(part.labels)
                continue
            labels[split].append(_mapped(part, label_of, named[0]))
            if _order(part.names, label_of) is not None:
                notes.append(
                    f"the labels of {part.where} are mapped by name to those of "
                    f"{named[0].where}: its classes have other numbers"
                )
    return Unified(common, labels, notes)


def _require_names(part: Part) -> None:
    assert part.names is not None  # noqa: S101  (the caller chose such parts)
    top = int(part.labels.max())
    if top >= len(part.names):
        raise DatasetError(
            f"{part.where} has the label {top}, expected labels below {len(part.names)}, the "
            "number of its class names"
        )


def _common_names(parts: Mapping[str, Sequence[Part]]) -> list[str]:
    ordered = [*parts.get("train", ()), *(p for s, ps in parts.items() if s != "train" for p in ps)]
    filled = [part for part in ordered if part.names is not None and len(part.labels)]
    assert filled[0].names is not None  # noqa: S101  (filled above)
    common = _plain(filled[0].names)
    trained = filled if "train" not in parts else [p for p in parts["train"] if len(p.labels)]
    known = set(common)
    lists = [(part, _plain(part.names or ())) for part in filled]
    if any(names != common for _, names in lists):
        for part, names in lists:
            _require_unique(part, names)
    for part in trained:
        for name in _plain(part.names or ()):
            if name not in known:
                known.add(name)
                common.append(name)
    return common


def _require_unique(part: Part, names: list[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise DatasetError(
            f"{part.where} names two classes {twice!r}, and other parts name the classes in "
            "another order: which is which is not known. Give every class a name of its own"
        )


def _order(names: Sequence[str], label_of: Mapping[str, int]) -> str | None:
    """Return the first name whose number differs from its label, or None."""
    plain = _plain(names)
    return next((name for number, name in enumerate(plain) if label_of.get(name) != number), None)


def _mapped(part: Part, label_of: Mapping[str, int], reference: Part) -> Labels:
    names = _plain(part.names or ())
    table = np.array([label_of.get(name, -1) for name in names], dtype=np.int64)
    labels: Labels = table[part.labels]
    if (labels < 0).any():
        unknown = names[int(part.labels[np.flatnonzero(labels < 0)[0]])]
        raise DatasetError(
            f"{part.where} has the class {unknown}, expected one of the {len(label_of):,} "
            f"classes of {reference.where}{did_you_mean(unknown, label_of)}"
        )
    return labels


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint if `name` differs from a known class name only by case or spaces."""
    same = _loosely(name)
    near = next((other for other in known if _loosely(other) == same), None)
    return "" if near is None else f". Did you mean {near}?"


def similar_names(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of names that differ only by case, spaces, hyphens or underscores."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        other = first.setdefault(_loosely(name), name)
        if other != name:
            pairs.append((other, name))
    return pairs


def _loosely(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def _plain(names: Sequence[str]) -> list[str]:
    return [plain_name(name) for name in names]


def plain_name(name: str) -> str:
    """Return a class name in Unicode's form NFC: macOS writes accents in another form."""
    return unicodedata.normalize("NFC", name)


def are_numbers(names: Sequence[str]) -> bool:
    """Return whether all names are whole numbers; such names say nothing about an order."""
    return bool(names) and all(name.isascii() and name.isdigit() for name in names)


def sorted_names(where: Path | str, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Sort the names of class folders: as numbers if all are numbers, else as text.

    Returns:
        The names, and notes about their order.

    Raises:
        DatasetError: if two names are the same number, such as 1 and 01.
    """
    as_text = sorted(names)
    if not are_numbers(as_text):
        return as_text, []
    ordered = sorted(as_text, key=int)
    for one, other in pairwise(ordered):
        if int(one) == int(other):
            raise DatasetError(
                f"{where} has the class folders {one} and {other}, expected one folder for each "
                "number. Rename or merge them"
            )
    note = f"the {len(ordered):,} class folders of {where} are numbers and are sorted as numbers"
    if ordered != as_text:
        first = next(label for label, name in enumerate(as_text) if name != ordered[label])
        note += f" (class {first} is {ordered[first]}; sorted as text it would be {as_text[first]})"
    return ordered, [note]


def read_names_file(folder: Path, root: Path) -> list[str] | None:
    """Return the names in the nearest classes.txt from `folder` up to `root`, or None.

    Raises:
        DatasetError: if a line before the last name is empty.
    """
    for place in (folder, *folder.parents):
        for name in NAMES_FILES:
            if (place / name).is_file():
                return _read_lines(place / name)
        if place == root:
            break
    return None


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 ({error}). Save it as UTF-8") from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not names or "" in names:
        number = names.index("") + 1 if names else 1
        raise DatasetError(
            f"line {number} of {path} is empty, expected one class name per line in label order"
        )
    return names


def number_classes(source: Source, *, classes: int | None, compact_labels: bool) -> Source:
    """Return a source whose labels are in [0, C) with C class names.

    Args:
        source: a source with class names, or with none.
        classes: number of classes that the user states; None if not stated.
        compact_labels: renumber the classes that have images; each keeps its name, or its former
            number as its name.

    Raises:
        ConfigError: if `classes` contradicts the source.
        DatasetError: if a source without names does not use every number from 0.
    """
    used = np.unique(np.concatenate([np.unique(s.labels) for s in source.splits.values()]))
    names = source.class_names
    if used[0] < 0 or (names and used[-1] >= len(names)):
        odd = int(used[0] if used[0] < 0 else used[-1])
        raise DatasetError(
            f"{source.where} has the label {odd:,}, expected labels from 0"
            + (f" and below {len(names):,}, the number of its class names" if names else "")
        )
    if names and classes not in (None, len(names)):
        raise ConfigError(
            parameter="classes",
            value=classes,
            problem=f"{source.where} names {len(names):,} classes",
            remedy="Leave the option out",
        )
    if compact_labels:
        return _compacted(source, used)
    if names:
        return source
    top = int(used[-1])
    if classes is not None and top >= classes:
        raise ConfigError(
            parameter="classes",
            value=classes,
            rule=f"a number above {top:,}, the largest label of {source.where}",
        )
    if classes is None and top >= len(used):
        raise DatasetError(_explain_gaps(source.where, used))
    return replace(source, class_names=[str(label) for label in range(classes or len(used))])


def _compacted(source: Source, used: Labels) -> Source:
    names = source.class_names
    kept = [names[label] if names else str(label) for label in used.tolist()]
    if len(kept) == len(names) or (not names and int(used[-1]) < len(used)):
        return replace(source, class_names=kept)
    splits: dict[str, Split] = {
        name: RelabelledSplit(split, np.searchsorted(used, split.labels).astype(np.int64))
        for name, split in source.splits.items()
    }
    shown = ", ".join(f"{old} -> {new}" for new, old in enumerate(used[:_MAX_SHOWN].tolist()))
    more = ", ..." if len(used) > _MAX_SHOWN else ""
    note = f"the {len(used):,} labels with images are renumbered from 0: {shown}{more}"
    return replace(source, splits=splits, class_names=kept, notes=[*source.notes, note])


def _explain_gaps(where: str, used: Labels) -> str:
    low, top = int(used[0]), int(used[-1])
    found = f"{len(used):,} different labels from {low:,} to {top:,}"
    missing = int(np.flatnonzero(used != np.arange(len(used)))[0])
    meant = (
        f"--classes {top + 1} if classes without images are meant, or " if top < MAX_CLASSES else ""
    )
    return (
        f"{where} has {found} and no class names, expected every number from 0, but no image has "
        f"the label {missing:,}. Say {meant}--compact-labels to renumber them, or write the names "
        f"of all classes to {NAMES_FILES[0]}"
    )


def add_val_split(source: Source, other: Source) -> Source:
    """Return `source` with the only split of another source as its evaluation split.

    Classes are matched by name; two sources without names are matched by number.

    Raises:
        ConfigError: if `source` has an evaluation split already, or the other has two splits.
        DatasetError: if the other has a class that `source` does not have, or only one of the two
            names its classes.
    """
    if "val" in source.splits:
        raise ConfigError(
            parameter="val_source",
            value=other.where,
            problem=f"{source.where} has an evaluation split already",
            remedy="Leave the option out",
        )
    if len(other.splits) > 1:
        raise ConfigError(
            parameter="val_source",
            value=other.where,
            problem="it has a training split too, expected a source with one split",
            remedy="Name the folder or the files of its evaluation split",
        )
    (split,) = other.splits.values()
    train = source.splits.get("train")
    if train is None:
        return source  # the caller refuses it
    unified = unify(
        {
            "train": [Part(source.where, train.labels, source.class_names or None)],
            "val": [Part(other.where, split.labels, other.class_names or None)],
        }
    )
    notes = [*source.notes, *other.notes, *unified.notes]
    if not unified.class_names or are_numbers(unified.class_names):
        notes.append(
            f"the classes of {source.where} and {other.where} are numbers: equal numbers are taken "
            "for equal classes"
        )
    content = f"{source.identity['content']} {other.identity['content']}"
    digest = hashlib.sha256(content.encode()).hexdigest()
    return replace(
        source,
        splits=source.splits | {"val": relabelled(split, unified.labels["val"][0])},
        class_names=unified.class_names,
        identity=source.identity | {"content": digest, "val_source": other.where},
        left_out=source.left_out + other.left_out,
        notes=notes,
    )


def relabelled(split: Split, labels: Labels) -> Split:
    """Return a split with other labels; the split itself if they are equal."""
    return split if np.array_equal(split.labels, labels) else RelabelledSplit(split, labels)
