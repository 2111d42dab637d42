"""Read and write the codec file, which holds the codec of the augmented views.

The codec is decided once, from the clean view, before view 1 is built. The file is an npz. Its
`decision` is a JSON string with the settings of the codec and the table of measurements. The arrays
of the codec, such as a basis, have their own names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy.typing as npt
import zarr

from kdcache.errors import CacheCorruptError, CacheIncompleteError, ConfigError
from kdcache.seals import parse_sealed_npz, sealed_npz
from kdcache.store.codecs.codec import Codec
from kdcache.store.codecs.dense import Dense, Float32
from kdcache.store.codecs.fidelity import CodecFigures
from kdcache.store.codecs.registry import codec_class, codec_from
from kdcache.store.format.layout import CODEC_KEY
from kdcache.store.format.location import display_name, has_key, read_key, write_key
from kdcache.store.manifest import StoreManifest

CODECS_WITHOUT_SETTINGS = frozenset({Dense.name, Float32.name})
"""Codecs without settings, which need no codec file: the manifest names them."""


class Decision(NamedTuple):
    """A codec and the measurements that led to it."""

    codec: Codec
    table: Sequence[CodecFigures]
    """One row for each candidate; see `kdcache.store.codecs.choice.Choice`."""


def clean_codec(manifest: StoreManifest) -> Codec:
    """Return the codec of view 0, which keeps every logit."""
    return codec_class(manifest.clean_codec)(manifest.classes)


def write_decision(group: zarr.Group, decision: Decision) -> None:
    """Write the codec file atomically."""
    content = {"settings": decision.codec.settings, "table": list(decision.table)}
    arrays: dict[str, npt.ArrayLike] = {"decision": json.dumps(content), **decision.codec.arrays}
    write_key(group.store, CODEC_KEY, sealed_npz(arrays))


def read_decision(group: zarr.Group, manifest: StoreManifest) -> Decision | None:
    """Return the decision, or None if there is none yet.

    Raises:
        CacheCorruptError: if the file is damaged.
    """
    if manifest.codec in CODECS_WITHOUT_SETTINGS:
        return Decision(codec_class(manifest.codec)(manifest.classes), ())
    content = read_key(group.store, CODEC_KEY)
    if content is None:
        return None
    try:
        name = f"{CODEC_KEY} of {display_name(group.store)}"
        arrays = parse_sealed_npz(content, name, remedy="Run kdcache verify --repair")
        decision = json.loads(str(arrays.pop("decision")))
        return Decision(codec_from(decision["settings"], arrays), decision["table"])
    except ConfigError:  # the user's own codec cannot be imported here
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise CacheCorruptError(
            f"{CODEC_KEY} of {display_name(group.store)} is damaged: {error}. "
            "Run kdcache verify --repair"
        ) from error


def has_codec(group: zarr.Group, manifest: StoreManifest) -> bool:
    """Return whether the codec of the augmented views is known."""
    return manifest.codec in CODECS_WITHOUT_SETTINGS or has_key(group.store, CODEC_KEY)


def codec_of(group: zarr.Group, manifest: StoreManifest, view: int) -> Codec:
    """Return the codec of a view's rows.

    Raises:
        CacheIncompleteError: if the codec of the augmented views is not decided yet.
        CacheCorruptError: if the codec file is damaged.
    """
    if view == 0:
        return clean_codec(manifest)
    decision = read_decision(group, manifest)
    if decision is None:
        raise CacheIncompleteError(
            f"the codec of {display_name(group.store)} is not decided yet: it is chosen "
            "after view 0. Run kdcache build-logits again with the same arguments; it continues"
        )
    return decision.codec
