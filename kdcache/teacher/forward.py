"""A model's forward pass over pixels: device, precision and normalisation in one place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError, TeacherError
from kdcache.options import Device, Precision
from kdcache.progress import logger
from kdcache.teacher.recording import Recording

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: Device) -> torch.device:
    """Return the device to run on.

    Raises:
        ConfigError: if CUDA is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device is cuda, but torch finds no CUDA device. Use --device cpu, or install a "
            "driver and a CUDA build of torch"
        )
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # torchrun says which of the machine's devices is this process's.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Return the context in which a model's body runs at a precision."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, dtype=_AUTOCAST[precision])
    return nullcontext()


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Allow TF32 where `precision` is tf32, and only there."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class Normalise(nn.Module):
    """uint8 pixels to float32 images of mean 0 and standard deviation 1, on the device.

    Args:
        mean: (3,) in [0, 1].
        std: (3,) above 0.
    """

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.scale = nn.Buffer(1 / (255 * torch.tensor(std).view(1, 3, 1, 1)), persistent=False)
        offset = torch.tensor(mean) / torch.tensor(std)
        self.offset = nn.Buffer(offset.view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) uint8 to float32, keeping the memory format."""
        return images.float() * self.scale - self.offset


class Float32Head(nn.Module):
    """A linear layer that works in float32 whatever runs around it.

    Attributes:
        features: (B, D) its input, last time.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.features: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D) of any float type to float32 (B, C)."""
        self.features = features
        with torch.autocast(features.device.type, enabled=False), matmul_precision("fp32"):
            return self.linear(features.float())


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
        model, head = _with_float32_head(model, num_classes)
        if keep_features and head is None:
            raise TeacherError(
                f"the teacher is {type(model).__name__} and ends in no linear layer with "
                f"{num_classes} outputs, expected one, whose input are its features. Leave "
                "--features out"
            )
        self._head = head if keep_features else None
        _say_what_is_widened(model)
        model = model.eval().to(device=device, dtype=torch.float32)
        self.model = model.to(memory_format=torch.channels_last)
        self._recording: Recording | None = None
        self._recorded_features: Tensor | None = None
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
        if self._recording is not None and self._recording.fits(images):
            recorded = self._recorded_features
            self._features = None if recorded is None else recorded[: len(images)]
            return self._recording(images)
        logits = self._answer(images.to(self.device, non_blocking=True))
        self._features = None if self._head is None else self._head.features
        return logits

    @torch.inference_mode()
    def record(self, images: Tensor) -> None:
        """Answer batches up to this one's size by a recording from now on: fewer launches.

        The logits have the bits that a batch of this size has without it.

        Where the model cannot be recorded, a warning says why, and every batch is answered kernel
        by kernel as before.

        Args:
            images: (B, 3, S, S) uint8 on the teacher's device, which is a CUDA device.

        References:
            `kdcache.teacher.recording` says why it is not compiled.
        """
        expected = self._answer(images).clone()
        try:
            recording = Recording(self._answer, images.flip(0))
            agrees = torch.equal(recording(images), expected)
            problem = None if agrees else "other images get other logits than without it"
        except RuntimeError as error:
            problem = str(error).partition("\n")[0]
        if problem is None:
            self._recording = recording
            self._recorded_features = None if self._head is None else self._head.features
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


def _say_what_is_widened(model: nn.Module) -> None:
    narrow = {weights.dtype for weights in model.parameters() if weights.is_floating_point()}
    if others := sorted(str(dtype) for dtype in narrow - {torch.float32}):
        logger.info("the teacher's weights are %s: kept as float32 here", ", ".join(others))


def _with_float32_head(model: nn.Module, num_classes: int) -> tuple[nn.Module, Float32Head | None]:
    """Wrap the last linear layer, where it is one that gives the logits; return both."""
    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes
    ]
    if not heads:
        return model, None
    name, linear = heads[-1]
    head = Float32Head(linear)
    if not name:
        return head, head
    model.set_submodule(name, head)
    return model, head
