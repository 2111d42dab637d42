"""Find the origin of a teacher: a file of weights, published weights, or code of the user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import ConfigError
from kdcache.models.description import WeightsDescription
from kdcache.models.timm_models import TIMM_PREFIX
from kdcache.models.weights import read_weights_description
from kdcache.teacher.published import PublishedWeights
from kdcache.teacher.timm_weights import find_timm
from kdcache.workspace import Workspace


@dataclass(frozen=True)
class WeightsFile:
    """A safetensors file, with what its metadata state about the model."""

    path: Path
    about: WeightsDescription

    @property
    def image_size(self) -> int | None:
        """Height and width of the images that it was trained on, in pixels, if it states them."""
        return self.about.image_size

    @property
    def normalisation(self) -> tuple[list[float], list[float]] | None:
        """Mean and std, (3,) each, if it states them."""
        return self.about.normalisation


@dataclass(frozen=True)
class ModuleCallable:
    """A function of the user that returns a model, `module:callable`. It states nothing."""

    spec: str
    image_size: None = None
    normalisation: None = None


TeacherSource = WeightsFile | PublishedWeights | ModuleCallable
"""The origin of a teacher."""


def find_teacher(spec: str, workspace: Workspace) -> TeacherSource:
    """Return the origin of a teacher, without loading its tensors.

    Search in this order: a file; a name in teachers/ of the workspace; published weights, of
    torchvision by model name and of timm as `timm:NAME`; `module:callable`.

    Raises:
        ConfigError: if there is no such teacher.
        TeacherError: if the published weights of that name cannot be used.
        WeightsError: if the file is damaged, or its metadata are not usable.
    """
    as_path, named = Path(spec), workspace.teacher(spec)
    if as_path.is_file():
        return _weights_file(as_path)
    if not spec.endswith(".safetensors"):
        if spec.startswith(TIMM_PREFIX):
            return find_timm(spec)
        if ":" in spec:
            return ModuleCallable(spec)
        if named.is_file():
            return _weights_file(named)
        from kdcache.teacher.torchvision_weights import find_torchvision

        if published := find_torchvision(spec):
            return published
    missing = as_path if spec.endswith(".safetensors") else named
    raise ConfigError(
        parameter="teacher",
        value=spec,
        rule=(
            f"a path, a name in {named.parent}, a classifier of torchvision, "
            f"timm:NAME, or module:callable. {missing} does not exist"
        ),
        remedy=f"Run: kdcache train-teacher --model {as_path.stem}",
    )


def _weights_file(path: Path) -> WeightsFile:
    return WeightsFile(path, WeightsDescription.parse(read_weights_description(path), path))
