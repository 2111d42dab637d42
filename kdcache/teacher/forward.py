"""Run a teacher over pixels: normalise them, run the model, return float32 logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcache.compute.normalize import Normalise
from kdcache.compute.precision import autocast, matmul_precision
from kdcache.errors import TeacherError
from kdcache.options import Precision, TeacherOutput
from kdcache.progress import logger
from kdcache.teacher.cuda_graph import CapturedForward
from kdcache.teacher.float32_head import with_float32_head


class TeacherForward:
    """Run a teacher in evaluation mode: map pixels to float32 logits.

    Args:
        model: maps normalised images (B, 3, H, W) to logits (B, C). Its weights are converted to
            float32; `precision` decides how they are multiplied.
        num_classes: C.
        mean: (3,) of the normalisation, in [0, 1].
        std: (3,) of the normalisation, above 0.
        device: device of the model.
        precision: precision of the body; a last linear layer with C outputs computes in float32.
        keep_features: keep the input of that layer, the penultimate activations.
        name: name of the teacher, for messages.
        output: what the model returns. Of probabilities, the logarithm is taken.

    Raises:
        TeacherError: if `keep_features` is set and the model has no such layer.
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
        name: str = "",
        output: TeacherOutput = "logits",
    ) -> None:
        self.name = name
        self.output = output
        self.num_classes = num_classes
        self.device = device
        self.precision = precision
        self.normalise = Normalise(mean, std).to(device)
        model, head = with_float32_head(model, num_classes)
        if keep_features and head is None:
            raise TeacherError(
                f"the teacher is {type(model).__name__} and ends in no linear layer with "
                f"{num_classes} outputs, expected one: its input is the features. Leave --features "
                "out"
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
        """Penultimate activations of the last batch, (B, F); None if they are not kept."""
        return self._features

    @property
    def _called(self) -> str:
        return f"the teacher {self.name}" if self.name else "the teacher"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of a batch.

        Args:
            images: (B, 3, S, S) uint8, on any device.

        Returns:
            (B, C) float32, on the teacher's device. After `capture`, the next call overwrites them
            and the features.

        Raises:
            TeacherError: if the model does not return (B, C).
        """
        if self._captured is not None and self._captured.fits(images):
            features = self._captured_features
            self._features = None if features is None else features[: len(images)]
            return self._captured(images)
        logits = self._logits(images.to(self.device, non_blocking=True))
        self._features = None if self._head is None else self._head.features
        return logits

    @torch.inference_mode()
    def capture(self, images: Tensor) -> None:
        """Capture the forward pass as a CUDA graph and replay it for batches of up to B images.

        A replay needs one launch, and its logits are bit-equal to those without it. If the model
        cannot be captured, a warning gives the reason and later calls run kernel by kernel.

        Args:
            images: (B, 3, S, S) uint8 on the teacher's device, which must be a CUDA device.

        References:
            `kdcache.teacher.cuda_graph` explains why the model is not compiled.
        """
        expected = self._logits(images).clone()
        try:
            captured = CapturedForward(self._logits, images.flip(0))
            agrees = torch.equal(captured(images), expected)
            problem = None if agrees else "the replay gives other logits"
        except RuntimeError as error:
            problem = str(error).partition("\n")[0]
        if problem is None:
            self._captured = captured
            self._captured_features = None if self._head is None else self._head.features
        else:
            logger.warning(
                "the teacher cannot be captured as a CUDA graph (%s). It runs kernel by kernel: "
                "the logits are the same, but small images take longer",
                problem,
            )

    def _logits(self, images: Tensor) -> Tensor:
        with matmul_precision(self.precision), autocast(self.device, self.precision):
            logits = self.model(self.normalise(images))
        if not isinstance(logits, Tensor):
            raise TeacherError(
                f"{self._called} returns {type(logits).__name__} for {len(images)} images, "
                f"expected one tensor of logits, ({len(images)}, {self.num_classes}). Name a "
                "module:callable whose module selects it, such as output[0] or output.logits"
            )
        if logits.shape != (len(images), self.num_classes):
            raise TeacherError(
                f"{self._called} returns {tuple(logits.shape)} for {len(images)} images, expected "
                f"logits of shape ({len(images)}, {self.num_classes}): one for each class of the "
                "packed data. Let module:callable return a model with these classes, or run: "
                "kdcache train-teacher --model resnet50"
            )
        return logits.float() if self.output == "logits" else log_probabilities(logits.float())


def log_probabilities(probabilities: Tensor) -> Tensor:
    """Return the natural logarithm of probabilities; NaN for negative values.

    A probability below the smallest normal float32, 1.2e-38, counts as that number, so that a zero
    does not become minus infinity.

    Args:
        probabilities: (B, C) float32.
    """
    logits = probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()
    return torch.where(probabilities < 0, torch.nan, logits)


def _log_widened_weights(model: nn.Module) -> None:
    dtypes = {weights.dtype for weights in model.parameters() if weights.is_floating_point()}
    if others := sorted(str(dtype) for dtype in dtypes - {torch.float32}):
        logger.info(
            "the teacher's weights are %s; they are converted to float32", ", ".join(others)
        )
