"""Run a teacher on labelled images and keep what a judgement of its answers needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdcache.data.beton import Beton
from kdcache.data.views import Views
from kdcache.reader.batches import PixelReader
from kdcache.rng import generator
from kdcache.teacher.forward import TeacherForward
from kdcache.teacher.out_of_memory import run_forward


class LabelledImages(NamedTuple):
    """Random images of the clean view, in batches of one size."""

    batches: list[Tensor]
    """(B, 3, S, S) uint8 each; the last one is padded with copies."""
    sample_ids: npt.NDArray[np.int64]
    """(n,)."""
    labels: npt.NDArray[np.int64]
    """(n,)."""


class Answers(NamedTuple):
    """What a teacher answers on n labelled images; (n,) each."""

    predictions: npt.NDArray[np.int64]
    nll: npt.NDArray[np.float64]
    """-log p of the label, in nats; NaN where a logit is not finite."""
    confidence: npt.NDArray[np.float64]
    """The largest probability of each image."""
    low: npt.NDArray[np.float64]
    """The smallest value of each row of outputs."""
    high: npt.NDArray[np.float64]
    """The largest value of each row of outputs."""
    total: npt.NDArray[np.float64]
    """The sum of each row of outputs."""


def read_labelled_images(beton: Beton, views: Views, count: int, batch_size: int) -> LabelledImages:
    """Read random images, the same ones in each call, in the clean view.

    Args:
        beton: the images.
        views: image size and centre crop.
        count: maximum number of images.
        batch_size: images per batch.
    """
    drawn = generator(0, "labelled images").permutation(len(beton))[:count]
    padded = np.resize(drawn, -(-len(drawn) // batch_size) * batch_size)
    reader = PixelReader(beton, views, batch_size=batch_size, batches_ahead=0)
    split = np.split(padded, len(padded) // batch_size)
    with closing(reader.read(split, 0)) as read:  # type: ignore[type-var]
        batches = [batch.images.clone() for batch in read]
    return LabelledImages(batches, beton.sample_ids[drawn], beton.labels[drawn])


@torch.inference_mode()
def measure_answers(forward: TeacherForward, images: LabelledImages) -> Answers:
    """Run a teacher on labelled images.

    The outputs are those of the model: probabilities if `forward.output` says so.

    Raises:
        TeacherError: if the batch does not fit into memory, or the model does not return (B, C).
    """
    labels = torch.from_numpy(np.resize(images.labels, sum(map(len, images.batches))))
    parts: list[list[Tensor]] = []
    for batch, of_batch in zip(images.batches, labels.split(len(images.batches[0])), strict=True):
        logits = run_forward(forward, batch.to(forward.device)).cpu().double()
        outputs = logits if forward.output == "logits" else logits.exp()
        log_probabilities = logits.log_softmax(dim=1)
        parts.append(
            [
                logits.argmax(dim=1),
                -log_probabilities.gather(1, of_batch[:, None])[:, 0],
                log_probabilities.amax(dim=1).exp(),
                outputs.amin(dim=1),
                outputs.amax(dim=1),
                outputs.sum(dim=1),
            ]
        )
    count = len(images.labels)
    return Answers(*(torch.cat(each)[:count].numpy() for each in zip(*parts, strict=True)))


@contextmanager
def other_normalisation(
    forward: TeacherForward, mean: list[float], std: list[float]
) -> Iterator[None]:
    """Give a teacher another mean and std, (3,) each, inside the context."""
    before = forward.normalise.scale.clone(), forward.normalise.offset.clone()
    forward.normalise.set(mean, std)
    try:
        yield
    finally:
        forward.normalise.scale.copy_(before[0])
        forward.normalise.offset.copy_(before[1])
