"""Define `LiveLoader`, which runs the teacher on each batch, for comparison with cached logits."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy.typing as npt
from torch import Tensor

from kdcache.data.beton import Beton
from kdcache.data.views import Views
from kdcache.loader.batch import Batch
from kdcache.loader.distill import DistillLoader
from kdcache.loader.staging import Rows
from kdcache.options import Order
from kdcache.reader.batches import PixelReader
from kdcache.selection.subset import Subset
from kdcache.store.codecs.dense import Float32
from kdcache.teacher.ensemble import Forward


class LiveLoader(DistillLoader):
    """A `DistillLoader` without a store: the teacher computes the logits in every step.

    Its batches equal those of a loader with a `float32` store of this teacher and `num_views`
    views. On a CPU they are bit-equal if the store was built with the same batch size and number of
    threads, and the batch size divides the number of samples.

    Args:
        beton: path of the packed training images, or an opened beton.
        teacher: the teacher in evaluation mode; its device is that of the batches.
        subset: as in `DistillLoader`, like all arguments that are not described here.
        batch_size: maximum number of samples in a batch and in a forward.
        seed: seed of the order.
        num_views: V, to cycle through V views as with a store. Default: a fresh view in each epoch.
        num_workers: threads that read and decode.
        order: order of the samples in an epoch.
        views: policy, seed and image size. Default: the manifest's.
        teacher_size: height and width of the teacher's images, in pixels. Default: the student's.
        epochs: number of epochs, if known.
    """

    def __init__(
        self,
        beton: Beton | Path | str,
        teacher: Forward,
        subset: Subset | npt.ArrayLike | None = None,
        batch_size: int = 128,
        seed: int = 0,
        *,
        num_views: int | None = None,
        num_workers: int | None = None,
        order: Order = "random",
        views: Views | None = None,
        teacher_size: int | None = None,
        epochs: int | None = None,
    ) -> None:
        super().__init__(
            beton,
            None,
            subset,
            batch_size,
            seed,
            teacher.device,
            num_workers=num_workers,
            order=order,
            views=views,
            num_views=num_views,
            epochs=epochs,
        )
        self._teacher = teacher
        self._teacher_reader = None
        if teacher_size not in {None, self.views.image_size}:
            teacher_views = self.views._replace(image_size=teacher_size)
            self._teacher_reader = PixelReader(
                self.beton, teacher_views, batch_size=batch_size, num_workers=num_workers
            )

    def _batches(self, epoch: int, first: int) -> Generator[Batch]:
        codec = Float32(self._teacher.num_classes)
        with (
            closing(super()._batches(epoch, first)) as batches,
            closing(self._teacher_images(epoch, first)) as teacher_images,
        ):
            for batch in batches:
                seen = batch.images if self._teacher_reader is None else next(teacher_images)
                # Copied, because a tensor made in inference mode cannot be part of a loss.
                yield batch._replace(rows=Rows(self._teacher(seen).clone(), codec))

    def _teacher_images(self, epoch: int, first: int) -> Generator[Tensor]:
        assert self._teacher_reader is not None  # noqa: S101  (called only if there is one)
        positions = self._positions(epoch)[first:]
        for pixels in self._teacher_reader.read(positions, self.view(epoch)):
            yield pixels.images
