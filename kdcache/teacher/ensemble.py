"""Run one teacher or several on the same pixels, and average the logits of several.

All members see the same view at the same size. Each has its own normalisation and float32 head. The
student learns from the mean of their outputs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.data.beton_manifest import BetonManifest
from kdcache.data.policy import CENTER_CROP_RATIO, Filter
from kdcache.errors import ConfigError
from kdcache.options import EnsembleMode, Precision
from kdcache.progress import logger
from kdcache.teacher.forward import TeacherForward
from kdcache.teacher.member_settings import TeacherOptions, settings_per_member
from kdcache.teacher.published import PublishedWeights
from kdcache.teacher.sources import find_teacher
from kdcache.teacher.teacher import Teacher, load_teacher
from kdcache.workspace import Workspace


@dataclass(frozen=True)
class Ensemble:
    """One teacher or several, with the geometry of their images."""

    members: Sequence[Teacher]
    mode: EnsembleMode | None
    """The quantity that is averaged; None with one member."""
    image_size: int
    """Height and width of their images, in pixels."""
    center_crop_ratio: float
    """Side of the clean view's centre crop, as a fraction of the short side, in (0, 1]."""
    clean_filter: Filter
    """The filter that resizes the clean view."""

    @property
    def name(self) -> str:
        """The name of their store: `A+B`."""
        return "+".join(member.name for member in self.members)

    @property
    def arch(self) -> str:
        """The architectures of the members, joined by `+`."""
        return "+".join(member.arch for member in self.members)

    @property
    def digest(self) -> str:
        """The digest of a single member; else a sha256 over the mode and all members in order."""
        if self.mode is None:
            return self.members[0].digest
        parts = [[member.digest, member.mean, member.std] for member in self.members]
        return hashlib.sha256(json.dumps([self.mode, parts]).encode()).hexdigest()

    @property
    def reported_top1(self) -> float | None:
        """Reported top-1 of a single member, in percent; None for a mean."""
        return self.members[0].reported_top1 if self.mode is None else None

    def forward(
        self,
        *,
        num_classes: int,
        device: torch.device,
        precision: Precision,
        keep_features: bool = False,
    ) -> Forward:
        """Return the function from pixels to logits; see `TeacherForward`.

        Raises:
            TeacherError: if `keep_features` is set and the model has no linear head.
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
                name=member.name,
                output=member.output,
            )
            for member in self.members
        ]
        return members[0] if self.mode is None else EnsembleForward(members, self.mode)


class EnsembleForward:
    """Map pixels to the mean logits of several teachers, with the interface of `TeacherForward`.

    Args:
        members: at least one, all on one device.
        mode: the quantity that is averaged.
    """

    features = None
    """Always None: an ensemble has no common penultimate activations."""

    def __init__(self, members: Sequence[TeacherForward], mode: EnsembleMode) -> None:
        self.members = members
        self.mode = mode
        self.num_classes = members[0].num_classes
        self.device = members[0].device
        self.precision = members[0].precision

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of a batch; see `TeacherForward`.

        Raises:
            TeacherError: if a member does not return (B, C).
        """
        images = images.to(self.device, non_blocking=True)  # one copy for all members
        return mean_logits([member(images) for member in self.members], self.mode)

    def capture(self, images: Tensor) -> None:
        """Capture every member; see `TeacherForward.capture`."""
        for member in self.members:
            member.capture(images)


Forward = TeacherForward | EnsembleForward
"""Maps (B, 3, S, S) uint8 pixels to (B, C) float32 logits."""


def mean_logits(logits: Sequence[Tensor], mode: EnsembleMode) -> Tensor:
    """Return the mean of the logits or probabilities of several teachers, as logits.

    The mean is computed in float64 and rounded once, so that probabilities such as 1e-30 survive.

    Args:
        logits: (B, C) float32, one tensor per teacher.
        mode: `probabilities`: the logarithm of the mean of the softmaxes at T = 1; `logits`: the
            mean of the logits after each row is centred.

    Returns:
        (B, C) float32.
    """
    wide_MBC = torch.stack([member.double() for member in logits])
    if mode == "logits":
        return (wide_MBC - wide_MBC.mean(dim=2, keepdim=True)).mean(dim=0).float()
    return (wide_MBC.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))).float()


def open_ensemble(
    specs: Sequence[str],
    *,
    given: TeacherOptions,
    mode: EnsembleMode,
    workspace: Workspace,
    data: BetonManifest,
    image_size: int,
    teacher_size: int | None,
) -> Ensemble:
    """Load the teachers that `--teacher` names.

    Args:
        specs: values of `--teacher`, at least one; see `find_teacher`.
        given: values of the options that describe teachers.
        mode: the quantity that is averaged if there are several teachers.
        workspace: the workspace that resolves names.
        data: manifest of the training data.
        image_size: height and width of the student's images, in pixels.
        teacher_size: height and width of the teachers' images. The default is the size at which
            published weights were evaluated and a file was trained, else `image_size`.

    Raises:
        ConfigError: if a teacher does not exist, `given` does not match the teachers, or they need
            different sizes.
        TeacherError: if a teacher does not fit the data, or cannot be downloaded.
        WeightsError: if a file is damaged, or its tensors do not fit the model.
    """
    sources = [find_teacher(spec, workspace) for spec in specs]
    sizes = {
        spec: source.image_size
        for spec, source in zip(specs, sources, strict=True)
        if source.image_size is not None
    }
    if teacher_size is None and len(set(sizes.values())) > 1:
        stated = ", ".join(f"{spec} at {size} px" for spec, size in sizes.items())
        raise ConfigError(
            "--teacher-size is not given, expected one size for all teachers, because they were "
            f"trained or evaluated at different ones: {stated}",
            parameter="teacher_size",
        )
    size = teacher_size or next(iter(sizes.values()), image_size)
    settings = settings_per_member(given, specs, sources)
    published = [source for source in sources if isinstance(source, PublishedWeights)]
    return Ensemble(
        members=[
            load_teacher(spec, source, settings=each, data=data, image_size=size)
            for spec, source, each in zip(specs, sources, settings, strict=True)
        ],
        mode=mode if len(specs) > 1 else None,
        image_size=size,
        center_crop_ratio=_common_center_crop_ratio(published),
        clean_filter=_common_clean_filter(published),
    )


def _common_center_crop_ratio(published: Sequence[PublishedWeights]) -> float:
    """Return the ratio at which all teachers were evaluated, else the default."""
    ratios = {source.center_crop_ratio for source in published}
    if len(ratios) > 1:
        logger.info(
            "the teachers were evaluated on centre crops of %s of the short side; the clean view "
            "uses %g",
            " and ".join(f"{ratio:.4g}" for ratio in sorted(ratios)),
            CENTER_CROP_RATIO,
        )
    return ratios.pop() if len(ratios) == 1 else CENTER_CROP_RATIO


def _common_clean_filter(published: Sequence[PublishedWeights]) -> Filter:
    """Return the filter with which all teachers were evaluated, else the default."""
    filters = {source.clean_filter for source in published}
    if len(filters) > 1:
        logger.info(
            "the teachers were evaluated with the filters %s; the clean view uses bilinear",
            " and ".join(sorted(filters)),
        )
    return filters.pop() if len(filters) == 1 else "bilinear"
