"""What each command can be told: one frozen dataclass per command, in the order of the walk.

A class here is the single source of a command's options, help text, recipe keys and validation.
They stand together, beside nothing heavy, because `kdcache --help` reads all of them and must not
import torch, and because they inherit each other's fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from kdcache.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
WriteMode = Literal["auto", "raw", "jpg"]
Codec = Literal["dense", "float32"]
Method = Literal["random", "easy", "hard", "medium"]
Score = Literal["cross_entropy", "entropy", "margin", "least_confidence", "el2n"]
Order = Literal["random", "block-random", "sequential"]
Balance = Literal["proportional", "class", "none"]

_FLAG = Parameter(negative="")


def _require(name: str, value: float | None, holds: Callable[[float], bool], rule: str) -> None:
    """Raise a ConfigError unless `value` is None or the rule holds for it."""
    if value is not None and not holds(value):
        raise ConfigError(f"--{name.replace('_', '-')} is {value}, expected {rule}")


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        _require(name, getattr(config, name), lambda value: value > 0, "a number above 0")


def _require_non_negative(config: object, *names: str) -> None:
    for name in names:
        _require(name, getattr(config, name), lambda value: value >= 0, "a number of at least 0")


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every command understands."""

    workspace: Annotated[Path, Parameter(env_var="KDCACHE_WORKSPACE")] = Path("kdcache-workspace")
    """Folder that holds everything kdcache makes."""

    json: Annotated[bool, _FLAG] = False
    """Print the result as one JSON object on stdout."""

    quiet: Annotated[bool, _FLAG] = False
    """Say nothing on stderr but warnings and errors."""


@dataclass(frozen=True, kw_only=True)
class PackOptions(CommonOptions):
    """Pack images into FFCV betons, with sample ids and a manifest."""

    source: str = field(kw_only=False)
    """`digits`, an ImageFolder, or a Hugging Face image parquet (a file, or a folder of shards)."""

    write_mode: WriteMode = "auto"
    """How the beton holds pixels; auto: raw up to 64 px, jpg above."""

    max_resolution: int | None = None
    """Shrink images so that the longer side has at most this many pixels."""

    val_fraction: float | None = None
    """Share of a source with one split that becomes the evaluation split, in [0, 1)."""

    seed: int = 0
    """Seed of the draw behind --val-fraction."""

    num_workers: int | None = None
    """Processes that decode and encode; all cores when left out."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace betons that were packed from something else."""

    def __post_init__(self) -> None:
        """Check every range."""
        _require_positive(self, "max_resolution", "num_workers")
        _require("val_fraction", self.val_fraction, lambda f: 0 <= f < 1, "a number in [0, 1)")
        _require_non_negative(self, "seed")


@dataclass(frozen=True, kw_only=True)
class _ViewOptions(CommonOptions):
    """How pixels are made, for the commands that may decide it."""

    image_size: int | None = None
    """Height and width of the images a model sees; the data set's when left out."""

    policy: str | None = None
    """View policy: pad-crop(4, flip), rrc(scale=(0.08, 1)), clean; the data set's when left out."""

    view_seed: int = 0
    """Seed of the views."""

    device: Device = "auto"
    """auto: cuda where there is one."""

    precision: Precision | None = None
    """Arithmetic of the model's body; fp32 on a CPU, fp16 (teacher) or bf16 on CUDA."""

    batch_size: int | None = None
    """Images per step or forward."""

    num_workers: int | None = None
    """Threads that read and decode; all cores when left out."""

    def __post_init__(self) -> None:
        """Check every range."""
        _require_positive(self, "image_size", "batch_size", "num_workers")
        _require_non_negative(self, "view_seed")


@dataclass(frozen=True, kw_only=True)
class TrainTeacherOptions(_ViewOptions):
    """Train a teacher on all data, without distillation."""

    model: str = "resnet50"
    """resnet8/20/32/56 (CIFAR family), resnet18/34/50, mobilenet_v2."""

    epochs: int | None = None
    """Passes over the data; enough steps for its size when left out."""

    lr: float | None = None
    """Peak learning rate; scaled to the batch size when left out."""

    seed: int = 0
    """Seed of initialisation and order."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a teacher that was trained otherwise."""

    def __post_init__(self) -> None:
        """Check every range."""
        super().__post_init__()
        _require_positive(self, "epochs", "lr")
        _require_non_negative(self, "seed")


@dataclass(frozen=True, kw_only=True)
class BuildLogitsOptions(_ViewOptions):
    """Run the teacher once over all data and store its logits and scores."""

    teacher: str | None = None
    """A path, a name in the workspace's teachers/, or module:callable; the only one in teachers/
    when left out."""

    arch: str | None = None
    """Model of a teacher given by path, where the file does not say."""

    views: int = 8
    """Augmented views per image, besides the clean one."""

    codec: Codec = "dense"
    """dense: float16, row mean removed; float32: exact."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a store that was built from something else."""

    def __post_init__(self) -> None:
        """Check every range."""
        super().__post_init__()
        _require_non_negative(self, "views")


@dataclass(frozen=True, kw_only=True)
class SelectOptions(CommonOptions):
    """Choose the sample ids to keep, from the scores in the store."""

    method: Method = "medium"
    """Which part of the difficulty order to keep."""

    score: Score = "cross_entropy"
    """Difficulty score; higher is harder."""

    keep: float = 0.7
    """Share of the training set to keep, in (0, 1]."""

    balance: Balance = "proportional"
    """proportional: each class keeps its share; class: equal numbers; none: one global order."""

    seed: int = 0
    """Seed of random draws."""

    teacher: str | None = None
    """Name of the store to read; the last one built when left out."""

    out: Path | None = None
    """File to write, instead of subsets/METHOD-KEEP....npz in the workspace."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a subset file that was made otherwise."""

    def __post_init__(self) -> None:
        """Check every range."""
        _require("keep", self.keep, lambda keep: 0 < keep <= 1, "a number in (0, 1]")
        _require_non_negative(self, "seed")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(CommonOptions):
    """Train a student on a subset, with the teacher's cached logits."""

    subset: str | None = None
    """Name or path of a subset, or `full` for all data; the last one selected when left out."""

    teacher: str | None = None
    """Name of the store to learn from; the last one built when left out."""

    model: str | None = None
    """Student; resnet18, or resnet8 up to 64 px, when left out."""

    epochs: int | None = None
    """Passes over the subset; enough steps for its size when left out."""

    batch_size: int | None = None
    """Samples per step; 128, or 32 for fewer than 5,000 samples, when left out."""

    lr: float | None = None
    """Peak learning rate; scaled to the batch size when left out."""

    alpha: float = 0.9
    """Weight of the distillation term, in [0, 1]."""

    temperature: float = 4.0
    """Temperature of the distillation term, above 0."""

    kd: bool = True
    """--no-kd: labels alone, for comparison."""

    seed: int = 0
    """Seed of initialisation and order; the views' seed belongs to the store."""

    device: Device = "auto"
    """auto: cuda where there is one."""

    precision: Precision | None = None
    """Arithmetic of the student's body; fp32 on a CPU, bf16 on CUDA."""

    num_workers: int | None = None
    """Threads that read and decode; all cores when left out."""

    order: Order = "random"
    """block-random: neighbours of the file close together, for data larger than memory."""

    pixels: Literal["check", "warn"] = "check"
    """warn: go on where this machine decodes other pixels than the teacher saw."""

    out: Path | None = None
    """Run folder, instead of a new runs/STUDENT-SUBSET-sSEED in the workspace."""

    resume: Annotated[bool, _FLAG] = False
    """Continue the run of --out, or the newest run of this name, from its last epoch."""

    def __post_init__(self) -> None:
        """Check every range."""
        _require("alpha", self.alpha, lambda alpha: 0 <= alpha <= 1, "a number in [0, 1]")
        _require_positive(self, "temperature", "epochs", "batch_size", "lr", "num_workers")
        _require_non_negative(self, "seed")
