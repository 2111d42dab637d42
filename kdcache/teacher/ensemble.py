"""Teachers asked together about the same pixels, and their answers made one.

With one teacher it is that teacher. Several see the same view at the same size, each with its own
normalisation and float32 head; the mean of their answers is what the student learns from.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdcache.data.beton import BetonManifest
from kdcache.data.policy import CLEAN_SHARE
from kdcache.errors import ConfigError
from kdcache.models.weights import read_weights_description
from kdcache.options import EnsembleMode, Precision
from kdcache.progress import logger
from kdcache.teacher.forward import TeacherForward
from kdcache.teacher.published import PublishedWeights
from kdcache.teacher.teacher import Teacher, TeacherSource, find_teacher, load_teacher
from kdcache.workspace import Workspace


@dataclass(frozen=True)
class Ensemble:
    """One teacher or several, and what they are shown."""

    members: Sequence[Teacher]
    mode: EnsembleMode | None
    """What the mean is taken of; None with one member."""
    image_size: int
    """Height and width of their images."""
    center_crop_ratio: float
    """Side of the clean view's centre square, as a share of the short side."""

    @property
    def name(self) -> str:
        """Under which their store is kept: `A+B`."""
        return "+".join(member.name for member in self.members)

    @property
    def arch(self) -> str:
        """Of each member."""
        return "+".join(member.arch for member in self.members)

    @property
    def digest(self) -> str:
        """A single member's own; else a sha256 over the mode and all members in their order."""
        if self.mode is None:
            return self.members[0].digest
        parts = [[member.digest, member.mean, member.std] for member in self.members]
        return hashlib.sha256(json.dumps([self.mode, parts]).encode()).hexdigest()

    @property
    def reported_top1(self) -> float | None:
        """Percent that is stated of a single member; of a mean nobody says anything."""
        return self.members[0].reported_top1 if self.mode is None else None

    def forward(
        self,
        *,
        num_classes: int,
        device: torch.device,
        precision: Precision,
        keep_features: bool = False,
    ) -> Forward:
        """Return what maps pixels to logits, see `TeacherForward`.

        Raises:
            TeacherError: if there are features to keep and the model has none.
        """
        members = [
            TeacherForward(
                member.model,
                num_classes=num_classes,
                mean=member.mean,
                std=member.std,
                device=device,
                precision=precision,
                keep_features=keep_features,
            )
            for member in self.members
        ]
        return members[0] if self.mode is None else EnsembleForward(members, self.mode)


class EnsembleForward:
    """Several teachers from pixels to the logits of their mean, as a `TeacherForward` of one.

    Args:
        members: at least one, on one device.
        mode: what the mean is taken of.
    """

    features = None
    """An ensemble has no penultimate activations."""

    def __init__(self, members: Sequence[TeacherForward], mode: EnsembleMode) -> None:
        self.members = members
        self.mode = mode
        self.num_classes = members[0].num_classes
        self.device = members[0].device
        self.precision = members[0].precision

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of a batch, as `TeacherForward` does.

        Raises:
            TeacherError: if a member does not return (B, C).
        """
        images = images.to(self.device, non_blocking=True)  # once for all
        return mean_logits([member(images) for member in self.members], self.mode)

    def capture(self, images: Tensor) -> None:
        """Record every member, see `TeacherForward.capture`."""
        for member in self.members:
            member.capture(images)


Forward = TeacherForward | EnsembleForward
"""Pixels to logits."""


def mean_logits(answers: Sequence[Tensor], mode: EnsembleMode) -> Tensor:
    """Return logits that stand for the mean of several answers.

    Worked out in float64 and rounded once: a probability of 1e-30 has a logarithm like any other.

    Args:
        answers: each (B, C) float32 logits.
        mode: `probabilities`: the logarithm of the mean of the softmaxes at T = 1; `logits`: the
            mean of the logits, each row centred first.

    Returns:
        (B, C) float32.
    """
    wide_MBC = torch.stack([answer.double() for answer in answers])
    if mode == "logits":
        return (wide_MBC - wide_MBC.mean(dim=2, keepdim=True)).mean(dim=0).float()
    return (wide_MBC.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(answers))).float()


def open_ensemble(
    specs: Sequence[str],
    *,
    archs: Sequence[str],
    mode: EnsembleMode,
    workspace: Workspace,
    data: BetonManifest,
    image_size: int,
    teacher_size: int | None,
) -> Ensemble:
    """Load the teachers that `--teacher` names.

    Args:
        specs: at least one, see `find_teacher`.
        archs: models of the files that do not say, in the order of these; `--arch`.
        mode: what the mean of several is taken of.
        workspace: where names are looked up.
        data: manifest of the training data.
        image_size: height and width of the student's images.
        teacher_size: of the teachers' images; left out, the size that published weights were
            evaluated at, and the student's where there are none.

    Raises:
        ConfigError: if there is no such teacher, a model is missing or has no use, or no one size
            fits all.
        TeacherError: if a teacher does not fit the data, or cannot be brought.
    """
    sources = [find_teacher(spec, workspace) for spec in specs]
    published = [source for source in sources if isinstance(source, PublishedWeights)]
    sizes = {source.image_size for source in published}
    if teacher_size is None and len(sizes) > 1:
        stated = ", ".join(f"{source.arch} at {source.image_size} px" for source in published)
        raise ConfigError(
            "--teacher-size is not given, expected one size for all teachers, which were evaluated "
            f"at others: {stated}"
        )
    size = teacher_size or next(iter(sizes), image_size)
    given = _archs_per_teacher(archs, specs, sources)
    return Ensemble(
        members=[
            load_teacher(spec, source, arch=arch, data=data, image_size=size)
            for spec, source, arch in zip(specs, sources, given, strict=True)
        ],
        mode=mode if len(specs) > 1 else None,
        image_size=size,
        center_crop_ratio=_common_center_crop_ratio(published),
    )


def _common_center_crop_ratio(published: Sequence[PublishedWeights]) -> float:
    """Return the share of the clean view that all were evaluated on, else the usual one."""
    shares = {source.center_crop_ratio for source in published}
    if len(shares) > 1:
        logger.info(
            "the teachers were evaluated on squares of %s of the short side; the clean view is %g",
            " and ".join(f"{share:.4g}" for share in sorted(shares)),
            CLEAN_SHARE,
        )
    return shares.pop() if len(shares) == 1 else CLEAN_SHARE


def _archs_per_teacher(
    archs: Sequence[str], specs: Sequence[str], sources: Sequence[TeacherSource]
) -> list[str | None]:
    """Return what `--arch` says of each teacher; of several it speaks of those that do not."""
    if len(specs) == 1 and len(archs) <= 1:
        return [*archs, None][:1]
    is_silent = [
        isinstance(source, Path) and "arch" not in read_weights_description(source)
        for source in sources
    ]
    if len(archs) != sum(is_silent):
        silent = [spec for spec, silent in zip(specs, is_silent, strict=True) if silent]
        raise ConfigError(
            f"--arch is given {len(archs)} times, expected {len(silent)}: once for each --teacher "
            f"that is a file and does not say what it is{': ' if silent else ''}{', '.join(silent)}"
        )
    left = iter(archs)
    return [next(left) if silent else None for silent in is_silent]
