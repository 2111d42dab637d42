"""Run a teacher over pixels: normalise them, run the model, return float32 logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcache.compute.normalize import Normalise
from kdcache.compute.precision import autocast, matmul_precision
from kdcache.errors import TeacherError
from kdcache.options import Precision
from kdcache.progress import logger
from kdcache.teacher.cuda_graph import CapturedForward
from kdcache.teacher.float32_head import with_float32_head


class TeacherForward:
    """A teacher in evaluation mode, from pixels to float32 logits.

    Args:
        model: maps normalised images (B, 3, H, W) to logits (B, C); weights of another type than
            float32 are widened, `precision` alone says how they are multiplied.
        num_classes: C.
        mean: (3,) of the normalisation.
        std: (3,) likewise.
        device: where it runs.
        precision: of the body; the head, if it is a last linear layer, works in float32.
        keep_features: keep the input of that layer, the penultimate activations.

    Raises:
        TeacherError: if there are features to keep and the model does not end in a linear layer.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        mean: list[float],
        std: list[float],
        device: torch.device,
        precision: Precision,
        keep_features: bool = False,
    ) -> None:
        self.num_classes = num_classes
        self.device = device
        self.precision = precision
        self.normalise = Normalise(mean, std).to(device)
        model, head = with_float32_head(model, num_classes)
        if keep_features and head is None:
            raise TeacherError(
                f"the teacher is {type(model).__name__} and ends in no linear layer with "
                f"{num_classes} outputs, expected one, whose input are its features. Leave "
                "--features out"
            )
        self._head = head if keep_features else None
        _log_widened_weights(model)
        model = model.eval().to(device=device, dtype=torch.float32)
        self.model = model.to(memory_format=torch.channels_last)
        self._captured: CapturedForward | None = None
        self._captured_features: Tensor | None = None
        self._features: Tensor | None = None

    @property
    def features(self) -> Tensor | None:
        """The penultimate activations of the last batch, (B, F); None where they are not kept."""
        return self._features

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of a batch.

        Args:
            images: (B, 3, S, S) uint8, on any device.

        Returns:
            (B, C) float32, on the teacher's device. After `record` the next call fills their memory
            again, and that of the features.

        Raises:
            TeacherError: if the model does not return (B, C).
        """
        if self._captured is not None and self._captured.fits(images):
            recorded = self._captured_features
            self._features = None if recorded is None else recorded[: len(images)]
            return self._captured(images)
        logits = self._answer(images.to(self.device, non_blocking=True))
        self._features = None if self._head is None else self._head.features
        return logits

    @torch.inference_mode()
    def capture(self, images: Tensor) -> None:
        """Answer batches up to this one's size by a recording from now on: fewer launches.

        The logits have the bits that a batch of this size has without it.

        Where the model cannot be recorded, a warning says why, and every batch is answered kernel
        by kernel as before.

        Args:
            images: (B, 3, S, S) uint8 on the teacher's device, which is a CUDA device.

        References:
            `kdcache.teacher.cuda_graph` says why it is not compiled.
        """
        expected = self._answer(images).clone()
        try:
            recording = CapturedForward(self._answer, images.flip(0))
            agrees = torch.equal(recording(images), expected)
            problem = None if agrees else "other images get other logits than without it"
        except RuntimeError as error:
            problem = str(error).partition("\n")[0]
        if problem is None:
            self._captured = recording
            self._captured_features = None if self._head is None else self._head.features
        else:
            logger.warning(
                "the teacher cannot be recorded as a CUDA graph (%s): it runs kernel by kernel, "
                "with the same logits, but slower where images are small",
                problem,
            )

    def _answer(self, images: Tensor) -> Tensor:
        with matmul_precision(self.precision), autocast(self.device, self.precision):
            logits = self.model(self.normalise(images))
        if not isinstance(logits, Tensor):
            raise TeacherError(
                f"the teacher returns {type(logits).__name__} for {len(images)} images, expected "
                f"one tensor of logits, ({len(images)}, {self.num_classes}). Name a "
                "module:callable whose module picks them out, such as output[0] or output.logits"
            )
        if logits.shape != (len(images), self.num_classes):
            raise TeacherError(
                f"the teacher returns {tuple(logits.shape)} for {len(images)} images, expected "
                f"logits of shape ({len(images)}, {self.num_classes}): one for each class of the "
                "packed data. Run: kdcache train-teacher --model resnet50"
            )
        return logits.float()


def _log_widened_weights(model: nn.Module) -> None:
    narrow = {weights.dtype for weights in model.parameters() if weights.is_floating_point()}
    if others := sorted(str(dtype) for dtype in narrow - {torch.float32}):
        logger.info("the teacher's weights are %s: kept as float32 here", ", ".join(others))
