"""`--live-teacher`: run the teacher in each training step, for comparison with a store."""

from __future__ import annotations

from typing import NamedTuple

import torch

from kdcache.compute.precision import teacher_precision
from kdcache.data.beton import Beton
from kdcache.data.views import Views
from kdcache.options import TrainOptions, as_values
from kdcache.teacher.ensemble import Forward, open_ensemble
from kdcache.teacher.member_settings import TeacherOptions
from kdcache.teacher.output_check import MIN_IMAGES, check_outputs
from kdcache.workspace import Workspace


class LiveTeacher(NamedTuple):
    """A teacher in the training process."""

    forward: Forward
    digest: str
    image_size: int
    """Height and width of its images."""
    mean: list[float]
    """(3,) of its normalisation."""
    std: list[float]
    """(3,) of its normalisation."""


def open_live_teacher(
    options: TrainOptions,
    workspace: Workspace,
    beton: Beton,
    views: Views,
    *,
    device: torch.device,
) -> LiveTeacher | None:
    """Load the teacher of `--live-teacher` as build-logits does; return None without the option.

    Args:
        options: options of the command.
        workspace: where names are looked up.
        beton: the training images.
        views: the student's views.
        device: device of the teacher.

    Raises:
        ConfigError: if there is no such teacher, or `arch` is missing or has no effect.
        TeacherError: if it does not fit the data, or does not return logits.
    """
    if options.live_teacher is None:
        return None
    teacher = open_ensemble(
        [str(options.live_teacher)],
        given=TeacherOptions.of(
            archs=as_values(options.arch),
            means=as_values(options.teacher_mean),
            stds=as_values(options.teacher_std),
            stems=as_values(options.stem),
            outputs=[options.teacher_output],
        ),
        mode="probabilities",
        workspace=workspace,
        data=beton.manifest,
        image_size=views.image_size,
        teacher_size=None,
    )
    forward = teacher.forward(
        num_classes=beton.manifest.classes,
        device=device,
        # The same default as a teacher pass, so that the logits are those of a store.
        precision=teacher_precision(options.precision, device),
    )
    check_outputs(
        teacher,
        forward,
        beton,
        views._replace(image_size=teacher.image_size),
        batch_size=MIN_IMAGES,
        num_forwards=len(beton),
    )
    (member,) = teacher.members
    return LiveTeacher(forward, teacher.digest, teacher.image_size, member.mean, member.std)
