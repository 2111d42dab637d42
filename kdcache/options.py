"""The options of each command: one frozen dataclass per command, in the usual order of use.

A class here is the single source of a command's options, help text, pipeline keys and validation.
They stand in one file without heavy imports, because `kdcache --help` reads all of them and must
not import torch, and because they inherit each other's fields.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

from kdcache.channels import parse_normalisations
from kdcache.data.policy import DEFAULT_DECODE, DEFAULT_DEFINITION, DecodeMode, PixelDefinition
from kdcache.errors import ConfigError
from kdcache.scores.registry import SCORES
from kdcache.selection.methods import METHODS, drawing_methods, method_entry, owners_of_options

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
EnsembleMode = Literal["probabilities", "logits"]
WriteMode = Literal["auto", "raw", "jpg"]
BadImage = Literal["stop", "skip"]
Order = Literal["random", "block-random", "sequential"]
Balance = Literal["proportional", "class", "none"]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["one-cycle", "cosine", "step", "constant"]
Split = Literal["train", "val"]
Weights = Literal["last", "best", "ema"]
Stem = Literal["small", "standard"]
TeacherOutput = Literal["logits", "probabilities"]

_FLAG = Parameter(negative="")
_EACH = Parameter(negative="")
_EXPORTS = (".parquet", ".npz")
FIGURES = (".png", ".pdf", ".svg")
"""File suffixes of figures."""

MAX_CLASSES = 10_000_000
"""Maximum number of classes."""

SCORE_FILES = (".npy", ".csv", ".parquet")
"""File suffixes of files with one score per sample."""


def _require(name: str, value: float | None, holds: Callable[[float], bool], rule: str) -> None:
    """Raise a ConfigError unless `value` is None, or finite and the rule holds for it."""
    if value is None:
        return
    is_finite = -math.inf < value < math.inf
    if not is_finite or not holds(value):
        rule += "" if is_finite else ", and a finite one"
        raise ConfigError(parameter=name, value=value, rule=rule)


def require_suffix(name: str, path: Path | str | None, suffixes: Sequence[str]) -> None:
    """Raise a ConfigError unless `path` is None or is named with one of the suffixes."""
    if path is not None and Path(path).suffix not in suffixes:
        raise ConfigError(
            parameter=name, value=path, rule=f"a file named NAME{' or NAME'.join(suffixes)}"
        )


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        _require(name, getattr(config, name), lambda value: value > 0, "a number above 0")


def _require_non_negative(config: object, *names: str) -> None:
    for name in names:
        _require(name, getattr(config, name), lambda value: value >= 0, "a number of at least 0")


def as_names(value: Sequence[Path | str] | Path | str) -> tuple[str, ...]:
    """Return the texts of an option that may be given several times; Python may give one alone."""
    return (str(value),) if isinstance(value, (str, Path)) else tuple(map(str, value))


def as_values(value: str | None) -> tuple[str, ...]:
    """Return the value of an option that is given once at most, as a tuple."""
    return () if value is None else (value,)


def _require_words(config: object, name: str, words: object) -> None:
    """Raise a ConfigError unless each value of an option is one of the words of a Literal."""
    for value in getattr(config, name):
        if value not in get_args(words):
            raise ConfigError(
                parameter=name, value=value, rule=f"one of {', '.join(get_args(words))}"
            )


def _as_tuples(config: object, *names: str) -> None:
    """Replace a single name or path by a tuple of one."""
    for name in names:
        object.__setattr__(config, name, as_names(getattr(config, name)))


def _require_unset(config: object, names: Sequence[str], use: str, *, unless: bool) -> None:
    """Raise a ConfigError if an option without effect differs from its default."""
    for name in names:
        value = getattr(config, name)
        if not unless and value != getattr(type(config), name):
            shown = ", ".join(value) if isinstance(value, tuple) else value
            raise ConfigError(
                parameter=name, value=shown, rule=f"{use} with it", remedy="Leave it out"
            )


WORKSPACE_VARIABLE = "KDCACHE_WORKSPACE"
"""Environment variable with the workspace that is used if none is given."""

DEFAULT_WORKSPACE = Path("kdcache-workspace")


def default_workspace() -> Path:
    """Return the workspace that is used if none is given."""
    return Path(os.environ.get(WORKSPACE_VARIABLE) or DEFAULT_WORKSPACE)


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """The options of every command."""

    workspace: Path | str = field(default_factory=default_workspace)
    """Folder for everything that kdcache writes."""


@dataclass(frozen=True, kw_only=True)
class _WorkspaceFirst(CommonOptions):
    """Options of a command that works on a workspace: it comes first in a call from Python."""

    workspace: Path | str = field(default_factory=default_workspace, kw_only=False)
    """Folder for everything that kdcache writes."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How the command line prints."""

    json: Annotated[bool, _FLAG] = False
    """Print the result as one JSON object on stdout."""

    quiet: Annotated[bool, _FLAG] = False
    """Print only warnings and errors on stderr."""


@dataclass(frozen=True, kw_only=True)
class StatusOptions(_WorkspaceFirst):
    """Without a command: list what the workspace holds, what is stale, and what to run next."""


@dataclass(frozen=True, kw_only=True)
class ShowOptions(CommonOptions):
    """Describe a beton, teacher, store, subset or run."""

    path: Path | str = field(kw_only=False)
    """Path of a beton, teacher, store, subset or run, or URL of a store."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(_WorkspaceFirst):
    """Check whether kdcache can run on this machine, and print a remedy for each problem."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(CommonOptions):
    """Run the steps of a pipeline whose inputs or options have changed."""

    pipeline: Annotated[Path | str, Parameter(name=("--pipeline", "--recipe"))] = field(
        kw_only=False
    )
    """Name of a bundled pipeline (digits, cifar10, cifar100, tiny-imagenet, imagenet or
    imagenet-mdslr), or the path of a TOML file."""

    source: Path | str | None = None
    """Images to pack, instead of the pipeline's own source."""

    dry_run: Annotated[bool, _FLAG] = False
    """Print which steps would run, and why, without running them."""


@dataclass(frozen=True, kw_only=True)
class PackOptions(CommonOptions):
    """Pack images into betons (FFCV's packed files), with sample ids and a manifest."""

    source: Path | str | None = field(default=None, kw_only=False)
    """An image folder; image Parquet (a file, or a folder of shards); WebDataset shards (a folder,
    or a pattern such as 'shards-{000..012}.tar'); hf:ORG/NAME; cifar10, cifar100 or digits."""

    val_source: Path | str | None = None
    """Source of the evaluation split, if SOURCE does not contain it."""

    label_key: str | None = None
    """Column (Parquet, hf:) or .json field (WebDataset) with the label. Default: label, or the .cls
    file."""

    classes: int | None = None
    """Number of classes of a source that does not name them, if some have no image."""

    compact_labels: Annotated[bool, _FLAG] = False
    """Renumber the classes that have images from 0. Each keeps its name, or its former number."""

    subset: Path | str | None = None
    """Pack the samples of this subset (a name or path) from the workspace's training beton instead
    of a SOURCE, so that training reads no other samples. Ids and pixels stay the same."""

    write_mode: WriteMode = "auto"
    """Encoding of the pixels; auto: raw up to 64 px, jpg above."""

    max_resolution: int | None = None
    """Shrink images until the longer side has at most this many pixels."""

    max_image_pixels: int | None = None
    """Refuse image files with more pixels, which could fill the memory. Default: 178,956,970."""

    val_fraction: float | None = None
    """Fraction of a source with one split that becomes the evaluation split, in [0, 1)."""

    on_bad_image: BadImage = "stop"
    """If an image cannot be decoded: stop and name it, or skip it and list it in the manifest."""

    seed: int = 0
    """Random seed for --val-fraction."""

    num_workers: int | None = None
    """Processes that decode and encode. Default: all cores, or fewer for few images."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace betons that were packed from another source or with other options."""

    dry_run: Annotated[bool, _FLAG] = False
    """Print the classes, the images of each split, and what is left out and why; write nothing."""

    def __post_init__(self) -> None:
        """Check every range."""
        if (self.source is None) == (self.subset is None):
            problem = "are both missing" if self.source is None else "are both given"
            raise ConfigError(
                f"--source and --subset {problem}, expected one of them. Run: kdcache pack SOURCE",
                parameter="source",
                value=self.source,
            )
        made_by_source = [
            *("val_source", "label_key", "classes", "compact_labels", "write_mode"),
            *("max_resolution", "max_image_pixels", "val_fraction", "on_bad_image", "seed"),
            *("num_workers", "dry_run"),
        ]
        _require_unset(self, made_by_source, "a SOURCE", unless=self.subset is None)
        _require_positive(self, "max_resolution", "max_image_pixels", "num_workers")
        _require(
            "classes",
            self.classes,
            lambda count: 0 < count <= MAX_CLASSES,
            f"a number from 1 to {MAX_CLASSES}",
        )
        if self.classes is not None and self.compact_labels:
            raise ConfigError(
                "--classes and --compact-labels are both given, expected one of them: the number "
                "of compact labels follows from the images",
                parameter="classes",
                value=self.classes,
            )
        _require("val_fraction", self.val_fraction, lambda f: 0 <= f < 1, "a number in [0, 1)")
        _require_non_negative(self, "seed")


@dataclass(frozen=True, kw_only=True)
class _ViewOptions(_WorkspaceFirst):
    """Options that decide how pixels are made."""

    image_size: int | None = None
    """Height and width of the model's input images. Default: the data set's."""

    policy: str | None = None
    """View policy: pad-crop(4, flip), rrc(scale=(0.08, 1)) or clean. Default: the data set's."""

    view_seed: int = 0
    """Random seed of the views."""

    pixel_definition: PixelDefinition = DEFAULT_DEFINITION
    """pillow: the pixels that Pillow gives; planes: luma and halved chroma are resized apart."""

    decode: DecodeMode = DEFAULT_DECODE
    """full; or scaled: decode large boxes at 1/2 to 1/8 of the size, faster and less exact."""

    device: Device = "auto"
    """Device; auto: cuda if there is a GPU."""

    precision: Precision | None = None
    """Precision of the model's body. Default: fp32 on a CPU; fp16 (teacher) or bf16 on CUDA."""

    batch_size: int | None = None
    """Images per step or forward pass."""

    num_workers: int | None = None
    """Threads that read and decode. Default: all cores."""

    def __post_init__(self) -> None:
        """Check every range."""
        _require_positive(self, "image_size", "batch_size", "num_workers")
        _require_non_negative(self, "view_seed")


@dataclass(frozen=True, kw_only=True)
class _LoopOptions(_WorkspaceFirst):
    """Options of the training loop, for students and teachers."""

    epochs: int | None = None
    """Passes over the data. Default: a number that gives small data sets enough steps."""

    steps: int | None = None
    """Optimiser steps, instead of --epochs."""

    optimizer: Optimizer = "sgd"
    """sgd (with Nesterov momentum) or adamw."""

    lr: float | None = None
    """Peak learning rate. Default: proportional to the samples per step."""

    momentum: float | None = None
    """Momentum of sgd, in [0, 1). Default: 0.9."""

    weight_decay: float | None = None
    """Weight decay of matrices and filters; norms, biases and position embeddings have none.
    Default: 5e-4 (sgd) or 0.05 (adamw)."""

    schedule: Schedule = "one-cycle"
    """Learning-rate schedule, updated every step."""

    warmup: float | None = None
    """Fraction of all steps in which the learning rate rises first, in [0, 1). Default: 0.15
    (one-cycle) or 0."""

    milestones: Annotated[Sequence[float], _EACH] = ()
    """For --schedule step: fraction of all steps after which the learning rate falls, above
    --warmup and below 1. Repeat it for several. Default: 0.5 and 0.75."""

    gamma: float | None = None
    """For --schedule step: factor of each fall, in (0, 1). Default: 0.1."""

    ema: float | None = None
    """Keep an exponential moving average of the weights with this decay in (0, 1), such as 0.999,
    and evaluate and save it too."""

    accumulate: int = 1
    """Batches per optimiser step (gradient accumulation)."""

    clip_norm: float | None = None
    """Clip the gradient to this norm."""

    compile: Annotated[bool, _FLAG] = False
    """Compile the model with torch.compile; needs a C++ compiler."""

    eval_every: int = 1
    """Evaluate after every so many epochs, and always after the last."""

    tensorboard: Annotated[bool, _FLAG] = False
    """Also write TensorBoard events to the run folder."""

    def __post_init__(self) -> None:
        """Check every range, and refuse options that have no effect."""
        object.__setattr__(self, "milestones", tuple(self.milestones))
        _require_positive(self, "epochs", "steps", "lr", "accumulate", "clip_norm", "eval_every")
        _require_non_negative(self, "weight_decay")
        if self.epochs is not None and self.steps is not None:
            raise ConfigError(
                f"--epochs is {self.epochs} and --steps is {self.steps}, expected one of them",
                parameter="epochs",
                value=self.epochs,
            )
        for name in ("momentum", "warmup"):
            _require(name, getattr(self, name), lambda share: 0 <= share < 1, "a number in [0, 1)")
        for name in ("gamma", "ema"):
            _require(name, getattr(self, name), lambda share: 0 < share < 1, "a number in (0, 1)")
        _require_unset(self, ["momentum"], "--optimizer sgd", unless=self.optimizer == "sgd")
        _require_unset(
            self, ["milestones", "gamma"], "--schedule step", unless=self.schedule == "step"
        )
        if self.schedule == "one-cycle":
            _require("warmup", self.warmup, lambda share: share > 0, "more than 0 for one-cycle")
        bounds = (self.warmup or 0.0, *self.milestones, 1.0)
        for before, after in pairwise(bounds):
            if self.milestones and not before < after:
                raise ConfigError(
                    parameter="milestones",
                    value=", ".join(map(str, self.milestones)),
                    rule=f"rising shares above --warmup {self.warmup or 0:g} and below 1",
                )


@dataclass(frozen=True, kw_only=True)
class TrainTeacherOptions(_ViewOptions, _LoopOptions):
    """Train a teacher on all data, without distillation."""

    model: str = "resnet50"
    """resnet8/20/32/56, wrn-16-2, wrn-40-2 or vgg8 (CIFAR families), resnet18/34/50, mobilenet_v2,
    shufflenet_v2_x0_5 or _x1_0, another classifier of torchvision, or timm:NAME."""

    seed: int = 0
    """Random seed of initialisation and sample order."""

    name: str | None = None
    """Name of the teacher in the workspace. Default: the model's name."""

    save_epochs: str | None = None
    """Also keep the weights after these epochs, such as 2,5,10, as teachers NAME-epoch2,
    NAME-epoch5, ..."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a teacher that was trained with other options or data."""

    def __post_init__(self) -> None:
        """Check every range."""
        _ViewOptions.__post_init__(self)
        _LoopOptions.__post_init__(self)
        _require_non_negative(self, "seed")
        if self.name is not None and not re.fullmatch(r"[\w.+-]+", self.name):
            raise ConfigError(
                parameter="name", value=self.name, rule="letters, digits, '.', '+', '-' and '_'"
            )
        _ = self.early_epochs

    @property
    def early_epochs(self) -> tuple[int, ...]:
        """Return the epochs of --save-epochs, counted from 1, in ascending order.

        Raises:
            ConfigError: if the text is no list of such epochs.
        """
        if self.save_epochs is None:
            return ()
        words = self.save_epochs.split(",")
        epochs = tuple(int(word) for word in words if re.fullmatch(r"[1-9]\d*", word))
        if len(epochs) != len(words) or list(epochs) != sorted(set(epochs)):
            raise ConfigError(
                parameter="save_epochs",
                value=self.save_epochs,
                rule="rising epochs from 1, such as 2,5,10",
            )
        return epochs


@dataclass(frozen=True, kw_only=True)
class BuildLogitsOptions(_ViewOptions):
    """Run the teacher once over all data and store its logits and scores."""

    teacher: Annotated[Sequence[Path | str] | Path | str, _EACH] = ()
    """A path, a name in the workspace's teachers/, a model of torchvision for its published weights
    (resnet50, or resnet50.IMAGENET1K_V1), timm:NAME, or module:callable. Repeat it for an ensemble.
    Default: the only file in teachers/."""

    arch: Annotated[Sequence[str] | str, _EACH] = ()
    """Model of a teacher given by path, if the file does not name it: a classifier of torchvision,
    timm:NAME, or resnet8/20/32/56, wrn-16-2, wrn-40-2 or vgg8 (CIFAR families)."""

    teacher_mean: Annotated[Sequence[str] | str, _EACH] = ()
    """Mean of the images that the teacher was trained on: R,G,B in [0, 1], or imagenet, data (the
    data set's) or none (pixels in [0, 1]). Default: what its file or publisher states, else data.
    For an ensemble, repeat it for each teacher that does not state its own."""

    teacher_std: Annotated[Sequence[str] | str, _EACH] = ()
    """Standard deviation, as for --teacher-mean; a name that is given for one holds for both."""

    stem: Annotated[Sequence[str] | str, _EACH] = ()
    """Stem of a teacher given by path, if neither its metadata nor its tensors tell it
    (mobilenet_v2, shufflenet_v2): small keeps the size of small images, standard is torchvision's.
    """

    teacher_output: Annotated[Sequence[str] | str, _EACH] = ()
    """What the teacher returns: logits, or probabilities, whose logarithm is taken. Repeat it for
    each teacher of an ensemble. Default: logits."""

    ensemble: EnsembleMode = "probabilities"
    """For several teachers: average their probabilities or their logits."""

    teacher_size: int | None = None
    """Height and width of the teacher's images, cut from the same boxes as the student's. Default:
    the size at which a file was trained or published weights were evaluated, else the student's."""

    views: int = 8
    """Augmented views per image, in addition to the clean view."""

    subset: Path | str | None = None
    """Name or path of a subset whose samples get augmented views. The clean view always covers all
    data; it is taken from an existing store of this teacher if there is one."""

    features: Annotated[bool, _FLAG] = False
    """Also store the penultimate activations of the clean view, as float16."""

    codec: str = "dense"
    """Codec of the augmented views: dense (float16), int8, topk(k=10),
    lowrank(k=10, r=64), sampled(draws=50, temperature=1), float32 (exact), module:name(...), or
    auto: the smallest that keeps the distillation gradient at temperatures 1 to 4."""

    store: Path | str | None = None
    """Path or URL (s3://, gs://) of the store, instead of stores/TEACHER.zarr in the workspace."""

    part: str | None = None
    """Build only this part, such as 2/4 for the second of four; join parts with kdcache merge."""

    allow_mixed: Annotated[bool, _FLAG] = False
    """Continue a store with another batch size, device or version; recorded with each shard."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a store that was built from other data or with other options."""

    def __post_init__(self) -> None:
        """Check every range."""
        super().__post_init__()
        _require_non_negative(self, "views")
        _require_positive(self, "teacher_size")
        _as_tuples(self, "teacher", "arch", "teacher_mean", "teacher_std", "stem", "teacher_output")
        _require_words(self, "stem", Stem)
        _require_words(self, "teacher_output", TeacherOutput)
        parse_normalisations(as_names(self.teacher_mean), as_names(self.teacher_std))
        count = len(as_names(self.teacher))
        _require_unset(self, ["ensemble"], "several --teacher", unless=count > 1)
        if self.features and count > 1:
            raise ConfigError(
                f"--features is given with {count} teachers, expected one: an ensemble "
                "has no penultimate activations of its own. Leave it out",
                parameter="features",
                value=True,
            )


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(_WorkspaceFirst):
    """Read every byte of a workspace's betons, stores and other files, and report damage."""

    store: Path | str | None = None
    """Path or URL of the only store to check. Default: all stores of the workspace, or with
    --teacher or --repair the last one built."""

    repair: Annotated[bool, _FLAG] = False
    """Rebuild damaged shards of the store with its teacher."""

    teacher: Annotated[Sequence[Path | str] | Path | str, _EACH] = ()
    """Run this teacher again on random rows, and compare. Repeat it for an ensemble, in the order
    of build-logits."""

    arch: Annotated[Sequence[str] | str, _EACH] = ()
    """Model of a teacher given by path, if the file does not name it."""

    stem: Annotated[Sequence[str] | str, _EACH] = ()
    """Stem of the teacher, as for build-logits."""

    teacher_output: Annotated[Sequence[str] | str, _EACH] = ()
    """What the teacher returns, as for build-logits."""

    allow_mixed: Annotated[bool, _FLAG] = False
    """Repair with another device or version than the store's; recorded with each shard."""

    rows: int = 256
    """Rows per view that --teacher compares."""

    seed: int = 0
    """Random seed for choosing these rows."""

    device: Device = "auto"
    """Device; auto: cuda if there is a GPU."""

    num_workers: int | None = None
    """Threads that read and decode. Default: all cores."""

    def __post_init__(self) -> None:
        """Check every range."""
        _require_positive(self, "rows", "num_workers")
        _require_non_negative(self, "seed")
        _as_tuples(self, "teacher", "arch", "stem", "teacher_output")
        _require_words(self, "stem", Stem)
        _require_words(self, "teacher_output", TeacherOutput)
        asks = bool(self.teacher)
        _require_unset(self, ["rows", "seed"], "--teacher", unless=asks)
        _require_unset(self, ["allow_mixed"], "--repair", unless=self.repair)
        of_a_teacher = ["arch", "stem", "teacher_output", "device", "num_workers"]
        _require_unset(self, of_a_teacher, "--teacher or --repair", unless=asks or self.repair)


@dataclass(frozen=True, kw_only=True)
class MergeOptions(CommonOptions):
    """Merge the parts of one store, which several calls of build-logits built."""

    parts: Annotated[Sequence[Path | str] | Path | str, _EACH] = field(kw_only=False)
    """Paths or URLs of stores built from the same data, teacher and options."""

    out: Path | str
    """Path or URL of the store to write."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a store at --out."""

    def __post_init__(self) -> None:
        """Check every range."""
        _as_tuples(self, "parts")
        if not self.parts:
            raise ConfigError(parameter="parts", value="()", rule="at least one store")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(CommonOptions):
    """Write decoded logits, labels and scores to a Parquet or npz file."""

    out: Path | str = field(kw_only=False)
    """File to write: NAME.parquet or NAME.npz."""

    store: Path | str | None = None
    """Path or URL of the store. Default: the last one built."""

    view: int = 0
    """View to write; 0 is the clean view, with all samples and their scores."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        """Check every range."""
        if Path(self.out).suffix not in _EXPORTS:
            raise ConfigError(f"OUT is {self.out}, expected NAME{' or NAME'.join(_EXPORTS)}")
        _require_non_negative(self, "view")


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """How to select samples by difficulty; the options of `select_ids`."""

    method: Annotated[
        str,
        Parameter(
            help="Part of the difficulty order to keep. window: from quantile --start on; "
            "stratified: equal numbers per difficulty (CCS); beta: random, easier if less is kept; "
            "class-adaptive: more of the classes that the teacher gets wrong (DRoP). One of "
            f"{METHODS.described()}."
        ),
    ] = "medium"
    """Method of `kdcache.selection.methods`, or module:name."""

    keep: float = 0.7
    """Fraction of the training set to keep, in (0, 1]."""

    balance: Balance = "proportional"
    """proportional: the same fraction of each class; class: equal numbers; none: ignore classes."""

    min_per_class: int = 0
    """Minimum number of samples to keep per class (all of a smaller class)."""

    start: float | None = None
    """window: difficulty quantile of the first sample to keep, in [0, 1 - keep]."""

    cut: float | None = None
    """stratified: fraction of the hardest samples, probably mislabelled, to drop first, in
    [0, 1 - keep]."""

    peak: float | None = None
    """beta: most likely difficulty quantile, in [0, 1]. Default: derived from --keep."""

    concentration: float | None = None
    """beta: concentration of the distribution; 0 is uniform. Default: 14."""

    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check every range, and refuse options that have no effect."""
        METHODS.require(self.method)
        if self.balance not in get_args(Balance):
            raise ConfigError(
                parameter="balance",
                value=self.balance,
                rule=f"one of {', '.join(get_args(Balance))}",
            )
        _require("keep", self.keep, lambda keep: 0 < keep <= 1, "a number in (0, 1]")
        _require_non_negative(self, "seed", "min_per_class", "concentration")
        left = round(1 - self.keep, 9)
        for name in ("start", "cut"):
            rule = f"a number in [0, {left:g}], what --keep {self.keep:g} leaves"
            _require(name, getattr(self, name), lambda share: 0 <= share <= left, rule)
        _require("peak", self.peak, lambda peak: 0 <= peak <= 1, "a number in [0, 1]")
        for method, names in owners_of_options().items():
            _require_unset(self, names, f"--method {method}", unless=self.method == method)
        *first, last = drawing_methods()
        drawn = f"--method {', '.join(first)} or {last}"
        _require_unset(self, ["seed"], drawn, unless=self.draws)
        if self.method == "window" and self.start is None:
            raise ConfigError(
                f"--start is not given, expected a number in [0, {left:g}] for --method window. "
                "--method medium keeps the middle",
                parameter="start",
            )
        if self.method == "class-adaptive" and self.balance == "none":
            raise ConfigError(
                parameter="balance",
                value="none",
                rule=(
                    "proportional or class for --method class-adaptive, which divides the "
                    "samples among the classes"
                ),
            )

    @property
    def draws(self) -> bool:
        """True if the method uses random numbers, so that `seed` matters."""
        return method_entry(self.method).draws

    @property
    def reads_scores(self) -> bool:
        """True if the method reads scores."""
        return method_entry(self.method).reads_scores


@dataclass(frozen=True, kw_only=True)
class SelectOptions(PruningOptions, _WorkspaceFirst):
    """Select the samples to keep, by a difficulty score."""

    score: Annotated[
        str, Parameter(help=f"Difficulty score; higher is harder: {SCORES.described()}.")
    ] = "cross_entropy"
    """Difficulty score; higher is harder. One of `kdcache.scores.registry`, or module:name."""

    scores: Path | str | None = None
    """File with your own scores, higher is harder: a .npy by sample id, or a .csv or .parquet with
    a column `score` and a column `sample_id` or `file`, or both."""

    parity: Literal["mdslr"] | None = None
    """mdslr: medium or random with the numbers per class of MDSLR's published code, by the
    cross-entropy of an augmented view."""

    teacher: Path | str | None = None
    """Name of the store to read. Default: the last one built."""

    store: Path | str | None = None
    """Path or URL of the store, instead of --teacher."""

    average_with: Annotated[Sequence[Path | str] | Path | str, _EACH] = ()
    """Average in the scores of another teacher's store. Repeat it for several."""

    compare: Path | str | None = None
    """Report the overlap with another subset (a name or path), per class."""

    export: Path | str | None = None
    """Also write the score of every sample, its file name and whether it is kept: .npy (scores
    alone), .csv or .parquet."""

    kept_files: Path | str | None = None
    """Also write the file names of the kept images, one a line."""

    out: Path | str | None = None
    """File to write, NAME.npz, instead of subsets/METHOD-KEEP....npz in the workspace."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a subset made with other options, and the files at --export and --kept-files."""

    def __post_init__(self) -> None:
        """Check every range, and refuse options that have no effect."""
        super().__post_init__()
        SCORES.require(self.score)
        require_suffix("scores", self.scores, SCORE_FILES)
        require_suffix("export", self.export, SCORE_FILES)
        require_suffix("out", self.out, (".npz",))
        _require_unset(self, ["score", "average_with"], "no --scores", unless=self.scores is None)
        _require_unset(
            self,
            ["score", "scores", "average_with"],
            "a --method that reads scores, or --export,",
            unless=self.reads_scores or self.export is not None,
        )
        if self.parity is not None:
            if self.method not in ("medium", "random"):
                raise ConfigError(
                    parameter="method",
                    value=self.method,
                    rule="medium or random for --parity mdslr",
                )
            decided = ["score", "scores", "balance", "min_per_class", "average_with"]
            _require_unset(self, decided, "no --parity", unless=False)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(CommonOptions):
    """Compute a difficulty score from the stored logits of the clean view, without a teacher."""

    name: Annotated[
        str, Parameter(help=f"Score that the store was built without: {SCORES.described()}.")
    ] = field(kw_only=False)
    """Score that the store was built without, of `kdcache.scores.registry`, or module:name."""

    teacher: Path | str | None = None
    """Name of the store to read. Default: the last one built."""

    store: Path | str | None = None
    """Path of the store, instead of --teacher."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a score file."""

    def __post_init__(self) -> None:
        """Check the name."""
        SCORES.require(self.name)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(_LoopOptions):
    """Train a student on a subset with the teacher's cached logits."""

    subset: Path | str | None = None
    """Name or path of a subset, or `full` for all data. Default: the last one selected."""

    teacher: Path | str | None = None
    """Name of the store to learn from. Default: the last one built."""

    store: Path | str | None = None
    """Path or URL of the store, instead of --teacher."""

    model: str | None = None
    """Student: any model of train-teacher. Default: resnet8 up to 64 px, else resnet18."""

    pixel_definition: PixelDefinition | None = None
    """pillow or planes, as for build-logits. Default: the store's; without a store pillow."""

    decode: DecodeMode | None = None
    """full or scaled, as for build-logits. Default: the store's; without a store full."""

    batch_size: int | None = None
    """Samples per batch. Default: 128, or 32 for fewer than 5,000 samples."""

    loss: str = "kd"
    """Distillation loss: kd (T^2 KL), dkd(alpha=1, beta=8, warm_up=0.08) (decoupled),
    dist(beta=2, gamma=2) (correlations), or module:name."""

    alpha: float | str | None = None
    """Weight of the distillation loss, in [0, 1]; cross-entropy has weight 1 - alpha. A number, a
    schedule linear(0.9, 0.5) or cosine(0.9, 0.5), or auto: larger if less is kept. Default: 0.9
    (kd) or 0.5."""

    temperature: float | None = None
    """Temperature of the distillation loss, above 0. Default: 4, or 2 with --standardise."""

    reshape: Annotated[bool, _FLAG] = False
    """Rescale the teacher's logits of each sample to the mean deviation of its class (MDSLR)."""

    standardise: Annotated[bool, _FLAG] = False
    """Standardise student and teacher logits per sample to mean 0 and standard deviation 1."""

    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy, in [0, 1)."""

    mixup: float | None = None
    """Mixup: mix images in pairs, with weights from Beta(a, a); labels and cached probabilities are
    mixed with the same weights."""

    cutmix: float | None = None
    """CutMix: paste a box of one image into another; a as for --mixup. With both, each batch draws
    one of them."""

    kd: bool = True
    """--no-kd: train on labels only, as a baseline."""

    live_teacher: Path | str | None = None
    """Run this teacher in each step instead of reading a store, as a baseline: a path, a name in
    the workspace's teachers/, or module:callable."""

    arch: str | None = None
    """Model of a --live-teacher given by path, if the file does not name it."""

    teacher_mean: str | None = None
    """Mean of the images that the --live-teacher was trained on, as for build-logits."""

    teacher_std: str | None = None
    """Standard deviation, as for --teacher-mean."""

    stem: Stem | None = None
    """Stem of the --live-teacher, as for build-logits."""

    teacher_output: TeacherOutput = "logits"
    """What the --live-teacher returns, as for build-logits."""

    views: int | None = None
    """Number of views to cycle through. Default: all of the store; with --live-teacher, a new view
    in each epoch. 0: new views with the logits of the clean view, which is known to be worse."""

    seed: int = 0
    """Random seed of initialisation and sample order; the store has the seed of the views."""

    seeds: int = 1
    """Number of students to train in sequence, with --seed and the seeds after it."""

    device: Device = "auto"
    """Device; auto: cuda if there is a GPU."""

    precision: Precision | None = None
    """Precision of the student's body. Default: fp32 on a CPU, bf16 on CUDA."""

    num_workers: int | None = None
    """Threads that read and decode. Default: all cores."""

    order: Order = "random"
    """Order of samples; block-random keeps neighbours in the file together, for data larger than
    memory."""

    pixels: Literal["check", "warn"] = "check"
    """If this machine decodes other pixels than the teacher saw: stop (check), or warn."""

    out: Path | str | None = None
    """Run folder, instead of a new runs/STUDENT-SUBSET-sSEED in the workspace. With --seeds: the
    parent of the run folders s0, s1, ..."""

    resume: Annotated[bool, _FLAG] = False
    """Continue the run at --out, or the newest run of this name, from its last epoch. With --seeds:
    finish or start every run that is not finished."""

    def __post_init__(self) -> None:
        """Check every range, and refuse options that have no effect."""
        super().__post_init__()
        if self.reshape and not self.kd:
            raise ConfigError(
                "--reshape is given with --no-kd, expected one: it needs a teacher",
                parameter="reshape",
                value=True,
            )
        of_teacher = ["loss", "alpha", "temperature", "standardise"]
        _require_unset(self, of_teacher, "--kd", unless=self.kd)
        _require_positive(self, "temperature", "batch_size", "num_workers", "seeds")
        _require_non_negative(self, "seed", "views")
        is_live = self.live_teacher is not None
        _require_unset(self, ["kd", "reshape"], "no --live-teacher", unless=not is_live)
        _require_unset(self, ["pixels"], "cached logits", unless=self.kd and not is_live)
        of_live_teacher = ["arch", "teacher_mean", "teacher_std", "stem", "teacher_output"]
        _require_unset(self, of_live_teacher, "--live-teacher", unless=is_live)
        parse_normalisations(as_values(self.teacher_mean), as_values(self.teacher_std))
        _require_unset(self, ["views"], "--kd", unless=self.kd)
        if is_live and self.views == 0:
            raise ConfigError(
                parameter="views",
                value=0,
                rule="at least 1 with --live-teacher, which runs on the student's images",
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(_WorkspaceFirst):
    """Measure accuracy, likelihood and calibration of a trained model."""

    weights: Path | str | None = field(default=None, kw_only=False)
    """Folder or name of a run, or a safetensors file. Default: the last finished run."""

    which: Weights = "last"
    """Weights of the run: after the last epoch, with the best accuracy, or their average (EMA)."""

    model: Annotated[str | None, Parameter(name=("--model", "--arch"))] = None
    """Model, if the file does not name it."""

    mean: str | None = None
    """Mean of the images that the model was trained on: R,G,B in [0, 1], or imagenet, data (the
    data set's) or none (pixels in [0, 1]). Default: what the file states, else data."""

    std: str | None = None
    """Standard deviation, as for --mean; a name that is given for one holds for both."""

    stem: Stem | None = None
    """Stem of the model, if neither the file's metadata nor its tensors tell it (mobilenet_v2,
    shufflenet_v2): small keeps the size of small images, standard is torchvision's."""

    split: Split = "val"
    """Split to evaluate on, in the clean view."""

    pixel_definition: PixelDefinition | None = None
    """pillow or planes, as for build-logits. Default: that of the training, else pillow."""

    decode: DecodeMode | None = None
    """full or scaled, as for build-logits. Default: that of the training, else full."""

    device: Device = "auto"
    """Device; auto: cuda if there is a GPU."""

    precision: Precision | None = None
    """Precision of the model's body. Default: fp32 on a CPU, bf16 on CUDA."""

    num_workers: int | None = None
    """Threads that read and decode. Default: all cores."""

    def __post_init__(self) -> None:
        """Check every range."""
        _require_positive(self, "num_workers")
        parse_normalisations(as_values(self.mean), as_values(self.std), prefix="")


@dataclass(frozen=True, kw_only=True)
class StudyOptions(CommonOptions):
    """Train a grid of students, resumable at any point, or print a table of the results."""

    grid: Path | str = field(kw_only=False)
    """Path of a TOML file with teachers and blocks of settings, or the bundled study digits."""

    source: Annotated[Sequence[str] | str, _EACH] = ()
    """NAME=SOURCE: images to pack for the grid's data set NAME. Default: NAME. Repeat it for
    several."""

    results: Path | str | None = None
    """Parquet file with one row per student; students in it are not trained again. Default:
    studies/GRID.parquet in the workspace."""

    block: Annotated[Sequence[str] | str, _EACH] = ()
    """Name of a block to run or show. Repeat it for several. Default: all."""

    jobs: int = 1
    """Students to train at once, each with one thread."""

    part: str | None = None
    """Train only this part, such as 2/8 for every eighth student from the second on."""

    until: str | None = None
    """Stop at this local time, such as 02:30; the next call continues."""

    tune_fraction: float | None = None
    """For choosing settings: evaluate on this fraction of the training set, and never read the test
    set."""

    retry: Annotated[bool, _FLAG] = False
    """Train failed students again."""

    commit: str | None = None
    """Commit to record, if the package does not know its own."""

    dry_run: Annotated[bool, _FLAG] = False
    """Print what would be made and trained, without doing it."""

    table: Annotated[tuple[str, str] | None, _EACH] = None
    """ROWS COLUMNS: print a table of accuracies over these settings instead. Join several by
    commas, such as method,kd."""

    where: Annotated[Sequence[str] | str, _EACH] = ()
    """SETTING=VALUE: show only these students. Repeat it for several."""

    plot: Path | str | None = None
    """Also draw the table: NAME.png, NAME.pdf or NAME.svg; needs 'kdcache[plot]'."""

    def __post_init__(self) -> None:
        """Check every range, and refuse options that have no effect."""
        _require_positive(self, "jobs")
        _require("tune_fraction", self.tune_fraction, lambda f: 0 < f < 1, "a number in (0, 1)")
        _as_tuples(self, "source", "block", "where")
        for name in ("source", "where"):
            for text in getattr(self, name):
                if not re.fullmatch(r"[^=]+=.+", text):
                    raise ConfigError(parameter=name, value=text, rule="NAME=VALUE")
        if self.until is not None and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", self.until):
            raise ConfigError(
                parameter="until", value=self.until, rule="a time of day such as 02:30"
            )
        require_suffix("plot", self.plot, FIGURES)
        require_suffix("results", self.results, (".parquet",))
        _require_unset(self, ["where", "plot"], "--table", unless=self.table is not None)
