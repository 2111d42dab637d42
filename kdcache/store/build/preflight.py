"""Run the teacher on one batch, to check that its logits can be cached and to measure its speed."""

from __future__ import annotations

import time
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache.data.beton import Beton
from kdcache.data.views import Views
from kdcache.errors import KDCacheError, TeacherError
from kdcache.reader.batches import PixelReader
from kdcache.store.build.plan import Shard
from kdcache.store.build.teacher_pass import require_finite
from kdcache.teacher.ensemble import Forward
from kdcache.teacher.out_of_memory import run_forward
from kdcache.teacher.tolerance import TOLERANCES, relative_differences


class Preflight(NamedTuple):
    """The result of the preflight batch."""

    feature_width: int | None
    """F, the width of the teacher's features; None if they are not kept."""
    seconds: float
    """Seconds of a warm forward of one batch, with the pixels on the device."""


def run_preflight(forward: Forward, beton: Beton, views: Views, batch_size: int) -> Preflight:
    """Run the teacher on one batch of the clean view, twice; on CUDA, capture its graph.

    The second batch holds the first half of the first one twice. So a teacher that draws random
    numbers, or that mixes the images of a batch, gives other logits and is refused.

    Args:
        forward: the teacher. On CUDA it is captured for batches of this shape.
        beton: the training images.
        views: policy, seed and image size.
        batch_size: B; if there are fewer images, they are repeated.

    Raises:
        TeacherError: if the batch does not fit into memory, or the logits cannot be stored.
    """
    ids = np.resize(beton.sample_ids, batch_size)
    images = _clean_images(beton, views, ids).to(forward.device)
    try:
        first = run_forward(forward, images).clone()
    except KDCacheError:
        raise
    except Exception as error:  # whatever the user's model raises
        raise TeacherError(
            f"the teacher fails on {batch_size} images of {views.image_size} px with 3 channels, "
            f"{type(error).__name__}: {error}. If it needs another size, set it with "
            "--teacher-size; if it needs other images, let module:callable return a model that "
            "converts them"
        ) from error
    require_finite(torch.isfinite(first).all(dim=1).cpu().numpy(), Shard(0, 0, ids), beton)
    indices = torch.arange(batch_size, device=forward.device) % -(-batch_size // 2)
    repeated = images[indices].contiguous(memory_format=torch.channels_last)
    seconds, again = _run_timed(forward, repeated)
    _require_repeatable(again, first[indices], forward, ids)
    if forward.device.type == "cuda":
        forward.capture(images)
        seconds, _ = _run_timed(forward, images)
    width = None if forward.features is None else forward.features.shape[1]
    return Preflight(width, seconds)


def _clean_images(beton: Beton, views: Views, ids: np.ndarray) -> Tensor:
    reader = PixelReader(beton, views, batch_size=len(ids), num_workers=1)
    with closing(reader.read([beton.positions(ids)], 0)) as batches:  # type: ignore[type-var]
        return next(iter(batches)).images.clone()


def _run_timed(forward: Forward, images: Tensor) -> tuple[float, Tensor]:
    _synchronize(forward.device)
    started = time.perf_counter()
    logits = forward(images)
    _synchronize(forward.device)
    return time.perf_counter() - started, logits


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _require_repeatable(found: Tensor, expected: Tensor, forward: Forward, ids: np.ndarray) -> None:
    bound = TOLERANCES[forward.precision]
    gaps = relative_differences(found.cpu().numpy(), expected.cpu().numpy())
    worst = int(gaps.argmax())
    if gaps[worst] > bound:
        raise TeacherError(
            f"the teacher gives sample {ids[worst % -(-len(ids) // 2)]} other logits in another "
            f"batch: they differ by {gaps[worst]:.3g} of their range, expected at most "
            f"{bound:g} at {forward.precision}. Cached logits must depend on their image only: "
            "look for dropout or batch normalisation that stays in training mode after eval()"
        )
