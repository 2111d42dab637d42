"""Read images from one folder per class, as torchvision's ImageFolder does.

What a file holds decides whether it is an image. Everything that is not packed is listed with the
reason.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.data.classes import did_you_mean, plain_name, sorted_names
from kdcache.data.file_content import IMAGE_SUFFIXES, image_format, read_head
from kdcache.data.source import LeftOut, Source, Split, merge_left_out
from kdcache.data.source_kind import SourceKind
from kdcache.data.split_names import (
    choose_splits,
    group_by_name,
    split_called,
    split_within,
)
from kdcache.data.walk import FileState, Tree, file_state, visible_folders
from kdcache.errors import DatasetError

_MAX_SHOWN = 5

_HIDDEN = "in hidden folders, or hidden"
_OTHER = "not images"
_BESIDE = "images beside the class folders, without a class"

_EXPECTED = "expected FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg, or FOLDER/CLASS/*.jpg"


@dataclass(frozen=True)
class FolderSplit:
    """Image files below one folder per class."""

    root: Path
    files: list[str]
    """Paths relative to `root`."""
    labels: npt.NDArray[np.int64]

    def read(self, position: int) -> bytes:
        """Return the file's bytes."""
        return (self.root / self.files[position]).read_bytes()

    def name(self, position: int) -> str:
        """Return the file's path."""
        return str(self.root / self.files[position])


@dataclass
class _Layout:
    """The folders of a source, and what lies beside them."""

    folders: dict[str, Path]
    """`train`, and `val` if there is one: the folders of the class folders."""
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def image_folder(root: Path) -> Source:
    """Open SOURCE/train/CLASS/* with SOURCE/val/CLASS/*, or SOURCE/CLASS/*.

    The classes are the names of the folders, sorted; folders whose names are all numbers are sorted
    as numbers. Files are found at any depth below them, also behind links to folders. Split
    folders may have any name that `split_called` knows, in any case. A folder that only wraps the
    others is skipped.

    Raises:
        DatasetError: if there are no class folders, a class of the training split has no image,
            the evaluation split has another class, or the layout has several readings.
    """
    layout = _find_layout(root)
    train = layout.folders["train"]
    folder_of = _class_folders(train)
    class_names, notes = sorted_names(train, folder_of)
    notes += _note_equal_subfolders(train)
    label_of = {name: label for label, name in enumerate(class_names)}
    splits: dict[str, Split] = {}
    content = hashlib.sha256()
    listings: list[_Listing] = []
    for split, folder in layout.folders.items():
        listing = _Listing(folder)
        listings.append(listing)
        folders = folder_of if split == "train" else _class_folders(folder)
        for unknown in sorted(set(folders) - set(label_of)):
            raise DatasetError(
                f"{folder} has the class folder {unknown}, expected one of the "
                f"{len(class_names):,} classes of {train}{did_you_mean(unknown, label_of)}"
            )
        labels: list[int] = []
        for label, name in enumerate(class_names):
            count = listing.add_class(folders[name]) if name in folders else 0
            if split == "train" and count == 0:
                raise DatasetError(
                    f"{folder / folders[name]} holds no images, {_EXPECTED}. Remove it if it is "
                    "no class"
                )
            labels += [label] * count
        if not labels:
            raise DatasetError(f"{folder} holds no images, expected {folder}/CLASS/*.jpg")
        listing.update(content, split)
        splits[split] = FolderSplit(
            folder.resolve(), listing.files, np.array(labels, dtype=np.int64)
        )
    identity = {"kind": "folder", "path": str(root.resolve()), "content": content.hexdigest()}
    left_out = merge_left_out([*layout.left_out, *_left_out(listings)])
    return Source(splits, class_names, identity, left_out=left_out, notes=[*layout.notes, *notes])


# --- the folders of the splits ---


def _find_layout(root: Path) -> _Layout:
    layout = _Layout({})
    base = _unwrapped(root, root, layout)
    folders = {folder.name: folder for folder in visible_folders(base)}
    by_split, others = _splits_among(list(folders))
    for split, names in by_split.items():
        if len(names) > 1:
            raise DatasetError(
                f"{base} has the folders {' and '.join(names)}, expected one folder for {split}. "
                "Rename or remove one of them"
            )
    chosen, ignored = choose_splits({split: names[0] for split, names in by_split.items()})
    if "train" in chosen and (visible_folders(folders[chosen["train"]]) or not others):
        layout.left_out += _beside_splits(base, others, {s: by_split[s][0] for s in ignored})
        layout.folders = {"train": _unwrapped(base / chosen["train"], root, layout)}
        if "val" in chosen:
            layout.folders["val"] = _unwrapped_val(base / chosen["val"], root, layout)
        return layout
    if by_split and not others:
        first = base / chosen["val"]
        raise DatasetError(
            f"{base} holds {', '.join(folders)} and no train, expected {base}/train/CLASS/*.jpg "
            f"beside it. To open only an evaluation split, name {first}"
        )
    layout.folders = {"train": base}
    _require_classes(base, list(folders.values()))
    return layout


def _splits_among(names: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return split -> folders, and the folders that are no splits.

    Longer names such as `seg_train` count only if every folder's name contains a split.
    """
    by_split, others = group_by_name(names)
    if by_split or len(names) < 2:  # noqa: PLR2004
        return by_split, others
    loose: dict[str, list[str]] = {}
    for name in names:
        if (found := split_within(name)) is None:
            return by_split, others
        loose.setdefault(found[0], []).append(name)
    return (loose, []) if "train" in loose else (by_split, others)


def _unwrapped(folder: Path, root: Path, layout: _Layout) -> Path:
    """Return the folder inside those that only wrap another one, such as `archive/train`."""
    inside = folder
    while True:
        folders = visible_folders(inside)
        if len(folders) != 1 or _has_images(inside):
            break
        inner = visible_folders(folders[0])
        is_split = inside == root and split_called(folders[0].name) is not None
        holds_splits = any(split_called(one.name) == "train" for one in inner)
        if is_split or not inner or (_has_images(folders[0]) and not holds_splits):
            break
        inside = folders[0]
    if inside == folder:
        return inside
    layout.notes.append(
        f"{inside.relative_to(root)} is taken for the folder of the splits or classes: it is the "
        f"only folder in {inside.parent}"
    )
    for wrapper in (path for path in inside.parents if path.is_relative_to(folder)):
        layout.left_out += _left_out_beside(wrapper)
    return inside


def _left_out_beside(folder: Path) -> list[LeftOut]:
    """Return the files and hidden folders directly in a folder."""
    tree = Tree(folder)
    files = tree.top_files()
    images = [name for name in files if _is_image(folder, name)]
    others = [name for name in files if name not in images]
    return [
        LeftOut(_BESIDE, _paths(tree, images)),
        LeftOut(_OTHER, _paths(tree, others)),
        LeftOut(_HIDDEN, _paths(tree, tree.hidden)),
    ]


def _unwrapped_val(folder: Path, root: Path, layout: _Layout) -> Path:
    """Return the folder of an evaluation split's classes; a single class is no wrapper."""
    trained = {path.name for path in visible_folders(layout.folders["train"])}
    folders = visible_folders(folder)
    if len(folders) == 1 and folders[0].name in trained:
        return folder
    return _unwrapped(folder, root, layout)


def _has_images(folder: Path) -> bool:
    """Return whether images lie directly in a folder."""
    return any(_is_image(folder, name) for name in Tree(folder).top_files())


def _is_image(folder: Path, name: str) -> bool:
    if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122  (fast)
        return True
    path = folder / name
    return isinstance(file_state(path), FileState) and image_format(read_head(path)) is not None


def _beside_splits(base: Path, others: list[str], ignored: dict[str, str]) -> list[LeftOut]:
    """Return what lies beside the split folders and is not packed."""
    found = [
        LeftOut(
            f"in {folder}, a further evaluation split",
            _all_files(base / folder),
            f"To evaluate on it, name it as --val-source {base / folder}",
        )
        for folder in ignored.values()
    ]
    found += [LeftOut(f"in {name}, which is no split", _all_files(base / name)) for name in others]
    return [*found, *_left_out_beside(base)]


def _all_files(folder: Path) -> tuple[str, ...]:
    return tuple(str(folder / name) for name in Tree(folder).files())


def _paths(tree: Tree, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(tree.root / name) for name in names)


def _require_classes(base: Path, folders: list[Path]) -> None:
    """Check that the folders are classes, not splits, wrappers or kinds of data."""
    if not folders:
        flat = _has_images(base)
        raise DatasetError(
            f"{base} holds {'images but ' if flat else ''}no class folders, {_EXPECTED}; or "
            "shards (*.tar), or image Parquet"
        )
    below = {folder.name: [path.name for path in visible_folders(folder)] for folder in folders}
    for name, inner in below.items():
        if len(folders) > 1 and (inside := {split_called(one) for one in inner} - {None}):
            first = next(one for one in inner if split_called(one))
            if "train" in inside or len(inside) > 1:
                raise DatasetError(
                    f"{base} has the folder {name}/{first}, a split below what would be a class. "
                    f"{_EXPECTED[0].upper()}{_EXPECTED[1:]}: train/CLASS, not CLASS/train"
                )
        if split_called(name) and (same := sorted(set(inner) & (set(below) - {name}))):
            raise DatasetError(
                f"{base / name} holds the folder {same[0]}, which is a class beside {name} too. "
                f"If {name} is a split, move the class folders into {base}/train"
            )


def _note_equal_subfolders(train: Path) -> list[str]:
    """Return a note if all class folders hold folders of the same names."""
    below = {
        folder.name: [path.name for path in visible_folders(folder)]
        for folder in visible_folders(train)
    }
    kinds = {frozenset(names) for names in below.values()}
    if len(below) < 2 or len(kinds) > 1 or not (kind := sorted(kinds.pop())):  # noqa: PLR2004
        return []
    classes = ", ".join(list(below)[:_MAX_SHOWN]) + (", ..." if len(below) > _MAX_SHOWN else "")
    parts = ", ".join(kind[:_MAX_SHOWN])
    return [f"the classes are {classes}; each holds the folders {parts}, read as parts of it"]


def _class_folders(folder: Path) -> dict[str, str]:
    """Return class name -> folder name.

    Raises:
        DatasetError: if there is none, if a link is broken, or a name is no valid text.
    """
    found: dict[str, str] = {}
    for path in visible_folders(folder):
        name = plain_name(path.name)
        if not name.isprintable() or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DatasetError(
                f"the name of the class folder {path} is {os.fsencode(path.name)!r}, expected "
                "printable UTF-8. Rename it"
            )
        if name in found:
            raise DatasetError(
                f"{folder} has two class folders called {name}, in two Unicode forms, expected "
                "one. Merge them"
            )
        found[name] = path.name
    for name in Tree(folder).top_files():
        if (folder / name).is_symlink():
            file_state(folder / name)  # a broken link may have led to a class
    if not found:
        flat = _has_images(folder)
        raise DatasetError(
            f"{folder} holds {'images but ' if flat else ''}no class folders, expected an "
            f"ImageFolder ({folder}/CLASS/*.jpg), shards (*.tar) or image Parquet"
        )
    return found


# --- the files of a split ---


class _Listing:
    """The images of one split, and the files that are none."""

    def __init__(self, folder: Path) -> None:
        self.tree = Tree(folder)
        self.files: list[str] = []
        self.states: list[FileState] = []
        self.special: list[str] = []
        self.other: list[str] = []
        self.beside: list[str] = []
        for name in self.tree.top_files():
            (self.beside if _is_image(folder, name) else self.other).append(name)

    def add_class(self, folder: str) -> int:
        """Add the files below a class folder; return the number of images."""
        before = len(self.files)
        for file in self.tree.files(folder):
            path = self.tree.root / file
            state = file_state(path)
            if not isinstance(state, FileState):
                self.special.append(file)
            elif _is_image(self.tree.root, file):
                self.files.append(file)
                self.states.append(state)
            else:
                self.other.append(file)
        return len(self.files) - before

    def update(self, content: hashlib._Hash, split: str) -> None:
        """Add name, size and time of every image to a digest."""
        for file, state in zip(self.files, self.states, strict=True):
            content.update(os.fsencode(f"{split}/{file}:{state.size}:{state.mtime_ns}\n"))


def _left_out(listings: Sequence[_Listing]) -> list[LeftOut]:
    found: dict[str, list[str]] = {}
    for listing in listings:
        for why, names in (
            (_OTHER, listing.other),
            (_BESIDE, listing.beside),
            ("neither folders nor regular files", listing.special),
            (_HIDDEN, listing.tree.hidden),
            ("links to folders that are read already", listing.tree.repeated),
        ):
            found.setdefault(why, []).extend(_paths(listing.tree, names))
    return [LeftOut(why, tuple(names)) for why, names in found.items()]


KIND = SourceKind(
    "a folder of images",
    lambda given: given.path.is_dir(),
    lambda given, _label_key: image_folder(given.path),
)
