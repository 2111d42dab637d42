"""Making what a store lacks: the passes of the teacher, and what is decided between them."""

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
from kdcache.reader.batches import workers_of_rank
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
"""Between two looks at what other ranks have made."""

MAX_QUEUED_BYTES = 1 << 28
"""Most that logits take that wait to be encoded and written; a single shard may take more."""


@dataclass(frozen=True)
class ShardBuilder:
    """A store that is there, and who makes what it lacks."""

    options: BuildLogitsOptions
    writer: StoreWriter
    wanted: StoreManifest
    """What this call would make the store from; its conditions may differ from the store's."""
    beton: Beton
    forward: Forward
    part: Part

    @property
    def num_views(self) -> int:
        """V that the store is to have in the end."""
        return max(self.options.views, self.writer.num_views)

    def cost(self, preflight: Callable[[], Preflight]) -> Cost | None:
        """Return what this part will cost; None where it has nothing to make.

        Args:
            preflight: what a batch took; called where there is something to make.
        """
        views = range(self.num_views + 1)
        work = missing_work(self.writer, views, self.part)
        if not work:
            return None
        self._conditions()  # where they are refused, the teacher need not be asked
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
            together=self.forward.device.type != "cpu",
        )
        return Cost(
            forwards=_count_images(work),
            seconds=seconds,
            bytes=self._expected_bytes() if self._is_decided else None,
            break_even_epochs=_count_images(missing_work(self.writer, views, Part())) / about.rows,
        )

    def fill(self) -> tuple[int, float]:
        """Make what is missing; return the images whose answers were stored, and the seconds."""
        forwards, seconds = 0, 0.0
        last = self.num_views
        # One pass where the codec is known, two where it is decided from the clean view.
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
        return self.options.num_workers or workers_of_rank()

    def _conditions(self) -> dict[str, Any] | None:
        allow_mixed = self.options.allow_mixed
        return conditions_to_record(self.writer, self.wanted, allow_mixed=allow_mixed)

    def _decide_codec(self) -> bool:
        """Decide the codec from view 0; return False where other parts have to make that first."""
        writer = self.writer
        if self.part.runs_concurrently:
            # The first rank decides when all have made their shards.
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
                "view 0 of %s lacks %d shards, which other parts make: bring the parts together "
                "with kdcache merge, then run this again; the codec of the other views is decided "
                "from all of view 0",
                writer.path,
                len(unfinished),
            )
            return False
        decide_codec(writer)
        logger.info(
            "%s bytes when views 0 to %d are whole", f"{self._expected_bytes():,}", self.num_views
        )
        return True

    def build_shards(self, work: list[Shard]) -> float:
        """Ask the teacher and commit some shards, whose arrays are there; return the seconds."""
        about = self.writer.manifest
        conditions = self._conditions()
        started = time.perf_counter()
        with CommitThread(
            lambda answers: commit_shard(self.writer, answers, conditions),
            capacity=max(1, MAX_QUEUED_BYTES // (4 * about.shard_rows * about.classes)),
        ) as commits:
            for answers in run_teacher(
                self.forward,
                work,
                self.beton,
                about.teacher_views,
                batch_size=self.wanted.batch_size,
                num_workers=self._num_workers,
                after_batch=commits.raise_failure,
            ):
                commits.put(answers)
        return time.perf_counter() - started

    def _expected_bytes(self) -> int:
        """Return what the store will take, to 1 % from a few MB on."""
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
    """Wait for other ranks; torchrun ends this one when one of them fails."""
    while not is_done():
        time.sleep(POLL_SECONDS)


def commit_shard(
    writer: StoreWriter, answers: TeacherOutputs, conditions: dict[str, Any] | None
) -> None:
    """Encode and write one shard, with the scores where it is of view 0.

    The host works the scores out as it does the codes: they are the same function of the logits,
    whatever the teacher ran on.

    Args:
        writer: of the store.
        answers: to the shard.
        conditions: to be recorded with it, where they are not the store's own.

    Raises:
        TeacherError: if an answer cannot be stored; names the sample.
    """
    answers.wait()
    shard, logits = answers.shard, answers.logits
    codec = writer.codec(shard.view)
    require_finite(codec.representable(logits), shard)
    rows = codec.encode(logits, sample_ids=shard.rows, view=shard.view)
    per_sample: dict[str, npt.NDArray[np.generic]] = {}
    if shard.view == 0:
        # A store that was begun before a score was added to the registry does without it.
        stored = set(per_sample_arrays(writer.group))
        for folder, functions in (("scores", SCORES), ("stats", STATS)):
            for name in functions:
                if (array := f"{folder}/{name}") in stored:
                    per_sample[array] = functions[name](logits, answers.labels).numpy()
        if answers.features is not None:
            per_sample[FEATURES] = answers.features.to(torch.float16).numpy()
    writer.write_shard(shard.view, shard.index, rows, per_sample, conditions=conditions)
