"""The codec of a store's augmented views, decided once, from the teacher's own clean answers."""

from __future__ import annotations

from kdcache.progress import logger
from kdcache.store.choice import choice_sample_ids, choose_codec, format_table
from kdcache.store.codec_file import Decision, write_decision
from kdcache.store.logit_store import LogitStore
from kdcache.store.writer import StoreWriter


def decide_codec(writer: StoreWriter) -> None:
    """Choose the codec from view 0, which must be whole, say what was measured, and write it."""
    store = LogitStore.open(writer.path)
    ids = choice_sample_ids(store.manifest.samples, store.manifest.classes)
    choice = choose_codec(store.manifest.codec, store.logits(ids, view=0), ids)
    logger.info(
        "codec %s for the augmented views; KD-gradient angle in degrees / norm ratio at each "
        "temperature, on the clean view's own logits:\n%s",
        choice.codec,
        format_table(choice.table),
    )
    write_decision(writer.group, Decision(choice.codec, choice.table))
