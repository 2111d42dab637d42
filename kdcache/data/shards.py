"""Find the shards of a source (tar files or Parquet), and the split of each.

A shard's name or its folder decides its split. Shards are never merged by chance: two
configurations in one folder are refused, and shards beside those of `train` whose names contain no
split are left out and named.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcache.data.classes import NAMES_FILES
from kdcache.data.source import LeftOut, merge_left_out
from kdcache.data.split_names import choose_splits, is_called_unlabelled, split_called, split_within
from kdcache.data.walk import FileState, Tree, file_state
from kdcache.errors import ConfigError, DatasetError

_NUMBERED = re.compile(r"(.*?)(\d+)-of-(\d+)(?!\d)")

_FORMATS = (".tar", ".parquet")

_MAX_SHOWN = 3


@dataclass(frozen=True)
class Shards:
    """The shards of a source."""

    splits: dict[str, list[Path]]
    """`train` and `val`, as far as they were found; in the order in which they are read."""
    root: Path
    """Folder that contains all of them."""
    left_out: list[LeftOut]
    notes: list[str]


def is_pattern(source: str) -> bool:
    """Return whether a text names several files: `shards-{000..012}.tar`, `shards-*.tar`."""
    return any(character in source for character in "*?[{")


def find_shards(source: str, is_shard: Callable[[str], bool]) -> Shards:
    """Find the shards of a source.

    Args:
        source: path of a file or folder, or a pattern with braces or wildcards.
        is_shard: whether a file of a folder is a shard, by its name.

    Raises:
        ConfigError: if a pattern names no file.
        DatasetError: if the shards of one split belong to several data sets, or one is missing.
    """
    path = Path(source)
    if path.is_dir():
        return _in_folder(path, is_shard)
    if path.is_file():  # whatever its name: `photos[1].tar` is no pattern then
        return Shards({"train": [path.resolve()]}, path.resolve().parent, [], [])
    shards = _matching(source)
    root = Path(os.path.commonpath([shard.parent for shard in shards]))
    found, others = _by_split(shards, root)
    notes = []
    if others:  # every shard was named, so it is meant
        if "train" in found:
            notes.append(
                f"{_shown(others)}: no split in the name, read as training images because the "
                "pattern names them"
            )
        meant = set(found.get("train", [])) | set(others)
        found["train"] = [shard for shard in shards if shard in meant]
    chosen, ignored = choose_splits(found)
    return Shards(chosen, root, _left_out_splits(ignored, found), notes)


def _in_folder(folder: Path, is_shard: Callable[[str], bool]) -> Shards:
    tree = Tree(folder)
    names = tree.files()
    kinds = {name: file_state(folder / name) for name in names if is_shard(name)}
    shards = [folder / name for name, state in kinds.items() if isinstance(state, FileState)]
    special = [name for name, state in kinds.items() if not isinstance(state, FileState)]
    left_out = [
        LeftOut("neither folders nor regular files", _paths(folder, special)),
        LeftOut("in hidden folders, or hidden", _paths(folder, tree.hidden)),
        LeftOut("links to folders that are read already", _paths(folder, tree.repeated)),
    ]
    others = [n for n in names if n not in kinds and Path(n).name not in NAMES_FILES]
    left_out.append(LeftOut("not shards", _paths(folder, others)))
    other = next((name for name in others if name.lower().endswith(_FORMATS)), None)
    if other is not None and shards:
        raise DatasetError(
            f"{folder} holds shards of two formats, such as {shards[0].relative_to(folder)} and "
            f"{other}, expected one. Name the shards that you mean in a pattern"
        )
    found, unnamed = _by_split(shards, folder)
    notes: list[str] = []
    if "train" in found:
        remedy = "If they are meant, name all shards in a pattern, or pack their folder"
        why = "shards without a split in their names, beside those of train"
        left_out.append(LeftOut(why, tuple(map(str, unnamed)), remedy))
    elif unnamed:
        found["train"] = _training_shards(folder, found, unnamed, left_out, notes)
    chosen, ignored = choose_splits(found)
    _require_one_data_set(folder, chosen)
    _require_complete(chosen)
    left_out += _left_out_splits(ignored, found)
    return Shards(chosen, folder, merge_left_out(left_out), notes)


def _paths(folder: Path, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(folder / name) for name in names)


def _left_out_splits(ignored: list[str], found: dict[str, list[Path]]) -> list[LeftOut]:
    return [
        LeftOut(
            f"shards of {name}, a further evaluation split",
            tuple(map(str, found[name])),
            "Choose one with --val-source",
        )
        for name in ignored
    ]


def _training_shards(
    folder: Path,
    found: dict[str, list[Path]],
    unnamed: list[Path],
    left_out: list[LeftOut],
    notes: list[str],
) -> list[Path]:
    """Return the shards without a split that are the training images."""
    odd = [shard for shard in unnamed if is_called_unlabelled(str(shard.relative_to(folder)))]
    rest = [shard for shard in unnamed if shard not in set(odd)]
    if found and not rest:
        raise DatasetError(
            f"{folder} holds {_shown(odd)} and shards of {', '.join(found)}, but none of train. "
            "Name the training shards in a pattern, and the others as --val-source"
        )
    if odd and rest:
        left_out.append(LeftOut("shards that are called no training data", _texts(odd)))
    training = rest or odd
    kinds = Counter((str(shard.parent.relative_to(folder)), _stem(shard)) for shard in training)
    if len(kinds) > 1:
        shown = ", ".join(f"{n:,} like {place}/{stem}" for (place, stem), n in kinds.items())
        notes.append(
            f"{len(training):,} shards of {folder} have no split in their names and are read as "
            f"one training split: {shown}"
        )
    return training


def _texts(paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(map(str, paths))


def _shown(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in paths[:_MAX_SHOWN])
    return names + (f" and {len(paths) - _MAX_SHOWN:,} more" if len(paths) > _MAX_SHOWN else "")


def _stem(path: Path) -> str:
    return re.sub(r"[\d_.-]+", "", path.stem.lower())


def _matching(source: str) -> list[Path]:
    """Return the files of a pattern, in the order of the braces, or by name for wildcards."""
    from braceexpand import braceexpand

    try:
        names = list(braceexpand(source))
    except ValueError as error:
        raise ConfigError(
            f"SOURCE is {source}, expected braces such as shards-{{000..012}}.tar: {error}"
        ) from error
    shards: list[Path] = []
    for name in names:
        matches = sorted(glob.glob(name)) if set(name) & set("*?[") else [name]  # noqa: PTH207
        missing = [match for match in matches if not Path(match).is_file()]
        if missing or not matches:
            first = (missing or [name])[0]
            problem = "is no regular file" if Path(first).exists() else "does not exist"
            raise ConfigError(f"SOURCE is {source}, expected existing shards. {first} {problem}")
        shards += [Path(match).resolve() for match in matches]
    return shards


def _parts(shard: Path, root: Path) -> list[str]:
    """Return the file's name, then its folders below `root`, innermost first."""
    return [shard.name, *reversed(shard.relative_to(root).parts[:-1])]


def _split_in(name: str) -> tuple[str, str] | None:
    """Return the split in a name and the text before it."""
    whole = split_called(name)
    return (whole, "") if whole is not None else split_within(name)


def _by_split(shards: Iterable[Path], root: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Group shards by the split that their path names; return those without one apart."""
    found: dict[str, list[Path]] = {}
    others: list[Path] = []
    for shard in shards:
        inside = next((s for part in _parts(shard, root) if (s := _split_in(part))), None)
        if inside is None:
            others.append(shard)
        else:
            found.setdefault(inside[0], []).append(shard)
    return found, others


def _require_one_data_set(root: Path, splits: dict[str, list[Path]]) -> None:
    """Check that all shards of a split belong to one data set.

    What stands before the split in their paths names the data set, apart from numbers.
    """
    for split, shards in splits.items():
        found: dict[tuple[str, str], Path] = {}
        for shard in shards:
            if (name := _data_set_of(shard, root, split)) is not None:
                found.setdefault(name, shard)
        if len(found) > 1:
            one, other = list(found.values())[:2]
            raise DatasetError(
                f"{root} holds {len(found)} data sets with shards of {split}, such as "
                f"{one.relative_to(root)} and {other.relative_to(root)}, expected one. Name its "
                "folder, or its shards in a pattern"
            )


def _data_set_of(shard: Path, root: Path, split: str) -> tuple[str, str] | None:
    parts = shard.relative_to(root).parts
    for depth, part in enumerate(parts):
        if (inside := _split_in(part)) is not None and inside[0] == split:
            return "/".join(parts[:depth]), re.sub(r"[\d_. -]+", "", inside[1].lower())
    return None


def _require_complete(splits: dict[str, list[Path]]) -> None:
    """Check that all shards of NAME-00000-of-00004 are there."""
    for shards in splits.values():
        found: dict[tuple[Path, str, str], set[int]] = {}
        for shard in shards:
            if match := _NUMBERED.match(shard.name):
                key = (shard.parent, match[1], match[3])
                found.setdefault(key, set()).add(int(match[2]))
        for (folder, before, total), numbers in found.items():
            if len(numbers) < int(total):
                first = next(n for n in itertools.count(min(1, *numbers)) if n not in numbers)
                raise DatasetError(
                    f"{folder / before}{first:05}-of-{total} is missing: there are "
                    f"{len(numbers):,} shards of {int(total):,}. Copy the others, or name the "
                    "shards that you mean in a pattern"
                )
