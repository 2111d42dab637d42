"""Look up the names of training images in their source; a beton does not store them."""

from __future__ import annotations

from kdcache.data.beton_manifest import BetonManifest
from kdcache.data.source import split_train_val
from kdcache.data.sources import open_source
from kdcache.errors import ConfigError, DatasetError
from kdcache.identity import differences


def training_names(manifest: BetonManifest) -> list[str]:
    """Return the names of the training images in the source, such as paths, by sample id.

    The source is opened again; its names are not stored.

    Raises:
        DatasetError: if the source no longer exists or has changed.
    """
    made_from = manifest.made_from
    where = made_from.get("path", made_from["kind"])
    try:
        source = open_source(
            where,
            val_source=made_from.get("val_source"),
            label_key=made_from.get("label_key"),
            classes=made_from.get("classes"),
            compact_labels=bool(made_from.get("compact_labels")),
        )
    except ConfigError as error:
        raise DatasetError(
            f"{where} no longer exists, expected the packed source: only it has the names of the "
            "images. Name samples by sample_id"
        ) from error
    if differ := differences(made_from, source.identity):
        raise DatasetError(
            f"{where} has changed since it was packed: {differ}. Name samples by sample_id"
        )
    train = split_train_val(source, made_from["val_fraction"], made_from["seed"])["train"]
    skipped = {image["position"] for image in manifest.skipped}
    return [
        train.name(position) for position in range(len(train.labels)) if position not in skipped
    ]
