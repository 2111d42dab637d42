"""The kinds of source that `kdcache pack` knows. A new kind is one new file and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace

from kdcache.data.source import Source, add_val_split
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
"""Places of each kind; the first one that recognises what the user writes opens it."""


def open_source(
    source: str, *, val_source: str | None = None, label_key: str | None = None
) -> Source:
    """Open a source by its name, path or pattern.

    Args:
        source: what the user wrote: one of the kinds above, or `module:name` for a function that
            returns a `Source`.
        val_source: likewise, of a source whose only split is the evaluation split.
        label_key: column, or field of .json, that holds the label.

    Raises:
        ConfigError: if there is no such source, or an option does not go with it.
        DatasetError: if it holds no usable images.
    """
    opened = _open(source, label_key)
    if val_source is not None:
        opened = add_val_split(opened, _open(val_source, label_key))
    if "train" not in opened.splits:
        raise DatasetError(
            f"{source} holds an evaluation split alone, expected training images too. Name them, "
            f"and this as --val-source; or rename it if it is to be trained on"
        )
    return opened


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
    return f"SOURCE is {given.text}, expected {known}. Unpack other archives"


def _open_users(place: str) -> Source:
    """Open a source of the user's own; its code is part of what the data were made from."""
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
