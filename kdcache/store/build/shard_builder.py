"""Build the missing shards of a store, and decide its codec between the passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdcache.data.beton import Beton
from kdcache.options import BuildLogitsOptions
from kdcache.progress import logger
from kdcache.reader.batches import workers_per_rank
from kdcache.scores.predictions import STATS
from kdcache.scores.registry import SCORES
from kdcache.store.build.codec_decision import decide_codec
from kdcache.store.build.commit_thread import CommitThread
from kdcache.store.build.cost import Cost, expected_seconds
from kdcache.store.build.opening import conditions_to_record
from kdcache.store.build.plan import Part, Shard, missing_work
from kdcache.store.build.preflight import Preflight
from kdcache.store.build.teacher_pass import TeacherOutputs, require_finite, run_teacher
from kdcache.store.format.accounting import store_bytes
from kdcache.store.format.codec_file import has_codec
from kdcache.store.format.layout import FEATURES, is_complete, per_sample_arrays
from kdcache.store.manifest import StoreManifest
from kdcache.store.writer import StoreWriter
from kdcache.teacher.ensemble import Forward

POLL_SECONDS = 0.2
"""Seconds between two checks of the progress of other ranks."""

MAX_QUEUED_BYTES = 1 << 28
"""Maximum size of the logits that wait to be encoded and written; one shard may exceed it."""


@dataclass(frozen=True)
class ShardBuilder:
    """Build the shards of an open store that belong to one part."""

    options: BuildLogitsOptions
    writer: StoreWriter
    wanted: StoreManifest
    """Manifest of this call; its build conditions may differ from the store's."""
    beton: Beton
    forward: Forward
    part: Part

    @property
    def num_views(self) -> int:
        """V, the number of augmented views when the build is done."""
        return max(self.options.views, self.writer.num_views)

    def cost(self, preflight: Callable[[], Preflight]) -> Cost | None:
        """Return the expected cost of this part; None if it has no missing shards.

        Args:
            preflight: measures a batch; called only if shards are missing.
        """
        views = range(self.num_views + 1)
        work = missing_work(self.writer, views, self.part)
        if not work:
            return None
        self._conditions()  # refuse other conditions before the preflight runs
        about = self.writer.manifest
        seconds = expected_seconds(
            [work]
            if self._is_decided
            else [_clean_view_shards(work), _augmented_view_shards(work)],
            preflight().seconds,
            beton=self.beton,
            views=about.teacher_views,
            batch_size=self.wanted.batch_size,
            num_workers=self._num_workers,
            overlaps=self.forward.device.type != "cpu",
        )
        return Cost(
            forwards=_count_images(work),
            seconds=seconds,
            bytes=self._expected_bytes() if self._is_decided else None,
            break_even_epochs=_count_images(missing_work(self.writer, views, Part())) / about.rows,
        )

    def run(self) -> tuple[int, float]:
        """Build the missing shards; return the images whose logits were stored, and the seconds."""
        forwards, seconds = 0, 0.0
        last = self.num_views
        # One pass if the codec is known; two if it is decided from the clean view.
        for views in [range(last + 1)] if self._is_decided else [range(1), range(1, last + 1)]:
            if views[0] == 1 and not self._decide_codec():
                return forwards, seconds
            self.writer.add_views(views[-1])
            if work := missing_work(self.writer, views, self.part):
                seconds += self.build_shards(work)
                forwards += _count_images(work)
            for view in views:
                if not self.writer.missing_shards(view):
                    self.writer.finish_view(view)
        if self.part.runs_concurrently and self.part.index == 0:
            _wait_until(
                lambda: all(is_complete(self.writer.group, view) for view in range(last + 1))
            )
        return forwards, seconds

    @property
    def _is_decided(self) -> bool:
        return self.num_views == 0 or has_codec(self.writer.group, self.writer.manifest)

    @property
    def _num_workers(self) -> int:
        return self.options.num_workers or workers_per_rank()

    def _conditions(self) -> dict[str, Any] | None:
        allow_mixed = self.options.allow_mixed
        return conditions_to_record(self.writer, self.wanted, allow_mixed=allow_mixed)

    def _decide_codec(self) -> bool:
        """Decide the codec from view 0; return False if other parts must first complete view 0."""
        writer = self.writer
        if self.part.runs_concurrently:
            # The first rank decides when all ranks have built their shards.
            _wait_until(
                lambda: (
                    has_codec(writer.group, writer.manifest)
                    or (self.part.index == 0 and not writer.missing_shards(0))
                )
            )
        if has_codec(writer.group, writer.manifest):
            return True
        if unfinished := writer.missing_shards(0):
            logger.warning(
                "view 0 of %s lacks %d shards, which other parts build. The codec of the other "
                "views is decided from all of view 0: combine the parts with kdcache merge, then "
                "run this again",
                writer.path,
                len(unfinished),
            )
            return False
        decide_codec(writer)
        logger.info(
            "%s bytes when views 0 to %d are complete",
            f"{self._expected_bytes():,}",
            self.num_views,
        )
        return True

    def build_shards(self, work: list[Shard]) -> float:
        """Run the teacher and commit the shards; their arrays must exist. Return the seconds."""
        about = self.writer.manifest
        conditions = self._conditions()
        started = time.perf_counter()
        with CommitThread(
            lambda outputs: commit_shard(self.writer, self.beton, outputs, conditions),
            capacity=max(1, MAX_QUEUED_BYTES // (4 * about.shard_rows * about.classes)),
        ) as commits:
            for outputs in run_teacher(
                self.forward,
                work,
                self.beton,
                about.teacher_views,
                batch_size=self.wanted.batch_size,
                num_workers=self._num_workers,
                after_batch=commits.raise_failure,
            ):
                commits.put(outputs)
        return time.perf_counter() - started

    def _expected_bytes(self) -> int:
        """Return the expected bytes of the store, within 1 % for stores of a few MB or more."""
        about = self.writer.manifest
        return store_bytes(
            self.writer.codec(self.num_views),
            self.writer.codec(0),
            num_samples=about.samples,
            num_rows=about.rows,
            num_views=self.num_views,
            shard_rows=about.shard_rows,
        )


def _count_images(work: list[Shard]) -> int:
    return sum(len(shard.rows) for shard in work)


def _clean_view_shards(work: list[Shard]) -> list[Shard]:
    return [shard for shard in work if shard.view == 0]


def _augmented_view_shards(work: list[Shard]) -> list[Shard]:
    return [shard for shard in work if shard.view > 0]


def _wait_until(is_done: Callable[[], bool]) -> None:
    """Wait for other ranks; torchrun ends this process if one of them fails."""
    while not is_done():
        time.sleep(POLL_SECONDS)


def commit_shard(
    writer: StoreWriter,
    beton: Beton,
    outputs: TeacherOutputs,
    conditions: dict[str, Any] | None,
) -> None:
    """Encode and write one shard; with view 0, write scores and statistics too.

    Scores are computed on the host, so that they depend on the logits only, whatever the device of
    the teacher.

    Args:
        writer: writer of the store.
        beton: the training images, for the name of a sample whose logits cannot be stored.
        outputs: teacher outputs of the shard.
        conditions: build conditions to record with it, if they differ from the manifest's.

    Raises:
        TeacherError: if a logit cannot be stored; names the sample.
    """
    outputs.wait()
    shard, logits = outputs.shard, outputs.logits
    codec = writer.codec(shard.view)
    require_finite(codec.representable(logits), shard, beton)
    rows = codec.encode(logits, view_keys=outputs.view_keys, view=shard.view)
    per_sample: dict[str, npt.NDArray[np.generic]] = {}
    if shard.view == 0:
        # A store that was begun before a score was registered lacks that score.
        stored = set(per_sample_arrays(writer.group))
        for folder, functions in (("scores", SCORES), ("stats", STATS)):
            for name in functions:
                if (array := f"{folder}/{name}") in stored:
                    per_sample[array] = functions[name](logits, outputs.labels).numpy()
        if outputs.features is not None:
            per_sample[FEATURES] = outputs.features.to(torch.float16).numpy()
    writer.write_shard(shard.view, shard.index, rows, per_sample, conditions=conditions)
