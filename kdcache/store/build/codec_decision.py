"""Choose the codec of the augmented views, once, from the logits of the clean view."""

from __future__ import annotations

from kdcache.progress import logger
from kdcache.store.codecs.choice import (
    choice_sample_ids,
    choose_codec,
    format_table,
)
from kdcache.store.format.codec_file import Decision, write_decision
from kdcache.store.format.layout import existing_views, rows_name
from kdcache.store.format.location import delete_key, list_keys
from kdcache.store.format.shards import read_rows
from kdcache.store.format.specs import is_encoded_with
from kdcache.store.writer import StoreWriter


def decide_codec(writer: StoreWriter) -> None:
    """Choose the codec from view 0, which must be complete; log the measurements; write it."""
    manifest = writer.manifest
    ids = choice_sample_ids(manifest.samples, manifest.classes)
    logits = writer.codec(0).decode(read_rows(writer.group, rows_name(0), ids))
    choice = choose_codec(manifest.codec, logits, ids)
    logger.info(
        "codec %s for the augmented views; KD-gradient angle in degrees / norm ratio at each "
        "temperature, on the clean view's own logits:\n%s",
        choice.codec,
        format_table(choice.table),
    )
    write_decision(writer.group, Decision(choice.codec, choice.table))
    _drop_rows_of_another_codec(writer)


def _drop_rows_of_another_codec(writer: StoreWriter) -> None:
    """Remove views that were encoded with another codec file; the build makes them again.

    This happens only if a damaged codec file was made again by another version of a library.
    """
    for view in existing_views(writer.group)[1:]:
        if not is_encoded_with(writer.group, writer.manifest, rows_name(view)):
            logger.warning("view %d of %s is encoded with another codec", view, writer.path)
            for key in list_keys(writer.group.store, f"views/{view}/"):
                delete_key(writer.group.store, key)
