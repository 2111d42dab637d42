"""List the kinds of source of `kdcache pack`. A new kind is one new file and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace

from kdcache.data.classes import add_val_split, number_classes
from kdcache.data.file_content import describe_content, read_head
from kdcache.data.source import Source
from kdcache.data.source_kind import Argument, SourceKind
from kdcache.errors import ConfigError, DatasetError
from kdcache.registry import is_user_code, load_user_code, user_code_digest

SOURCES = (
    "kdcache.data.hugging_face:KIND",
    "kdcache.data.digits:KIND",
    "kdcache.data.cifar:KIND",
    "kdcache.data.parquet:KIND",
    "kdcache.data.tar_shards:KIND",
    "kdcache.data.image_folder:KIND",
)
"""`module:name` per kind. The first kind that recognises the value of SOURCE opens it."""


def open_source(
    source: str,
    *,
    val_source: str | None = None,
    label_key: str | None = None,
    classes: int | None = None,
    compact_labels: bool = False,
) -> Source:
    """Open a source by its name, path or pattern.

    Args:
        source: value of SOURCE: one of the kinds above, or `module:name` for a function that
            returns a `Source`.
        val_source: value of --val-source: a source whose only split is the evaluation split.
        label_key: name of the column, or of the field of .json, that holds the label.
        classes: value of --classes: the number of classes of a source that does not name them.
        compact_labels: value of --compact-labels: renumber the classes that have images.

    Raises:
        ConfigError: if there is no such source, or an option does not apply to it.
        DatasetError: if it holds no usable images.
    """
    opened = _open(source, label_key)
    if val_source is not None:
        opened = add_val_split(opened, _open(val_source, label_key))
    if "train" not in opened.splits:
        raise DatasetError(
            f"{source} holds only an evaluation split, expected training images too. Name them as "
            f"SOURCE and this as --val-source, or rename the split to train on it"
        )
    return number_classes(opened, classes=classes, compact_labels=compact_labels)


def _open(source: str, label_key: str | None) -> Source:
    given = Argument(source)
    kind = next((kind for kind in _kinds() if kind.recognises(given)), None)
    is_users = kind is None and is_user_code(source)
    if kind is None and not is_users:
        raise ConfigError(_why_not(given), parameter="source", value=source)
    if label_key is not None and (kind is None or not kind.has_label_key):
        raise ConfigError(
            parameter="label_key",
            value=label_key,
            problem=f"{source} has no columns or fields to choose from",
            remedy="Leave the option out",
        )
    return _open_users(source) if kind is None else kind.open(given, label_key)


def _kinds() -> Iterator[SourceKind]:
    for place in SOURCES:
        module, _, name = place.partition(":")
        yield getattr(importlib.import_module(module), name)


def _why_not(given: Argument) -> str:
    descriptions = (kind.description for kind in _kinds())
    known = ", ".join(dict.fromkeys(descriptions)) + ", or module:name"
    if not given.path.exists():
        return f"SOURCE is {given.text}, expected {known}. {given.path.resolve()} does not exist"
    found = describe_content(read_head(given.path)) if given.path.is_file() else None
    about = f"It {found}" if found else "Unpack other archives"
    return f"SOURCE is {given.text}, expected {known}. {about}"


def _open_users(place: str) -> Source:
    """Open a user's source. A digest of its code is part of the identity."""
    found = load_user_code(place, option="source")()
    if not isinstance(found, Source):
        raise ConfigError(
            parameter="source",
            value=place,
            rule=f"a function that returns a kdcache.data.source.Source, but it returned "
            f"{type(found).__name__}",
        )
    identity = found.identity | {"kind": place, "code_digest": user_code_digest(place)}
    return replace(found, identity=identity)
