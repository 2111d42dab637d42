"""What each command can be told: one frozen dataclass per command, in the order of the walk.

A class here is the single source of a command's options, help text, recipe keys and validation.
They stand together, beside nothing heavy, because `kdcache --help` reads all of them and must not
import torch, and because they inherit each other's fields.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

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

_FLAG = Parameter(negative="")
_EACH = Parameter(negative="")
_EXPORTS = (".parquet", ".npz")
FIGURES = (".png", ".pdf", ".svg")
"""Suffixes of figures."""

SCORE_FILES = (".npy", ".csv", ".parquet")
"""Suffixes of files with a score for each sample."""


def _require(name: str, value: float | None, holds: Callable[[float], bool], rule: str) -> None:
    """Raise a ConfigError unless `value` is None, or finite and the rule holds for it."""
    if value is None:
        return
    is_finite = -math.inf < value < math.inf
    if not is_finite or not holds(value):
        rule += "" if is_finite else ", and a finite one"
        raise ConfigError(f"--{name.replace('_', '-')} is {value}, expected {rule}")


def require_suffix(name: str, path: Path | None, suffixes: Sequence[str]) -> None:
    """Raise a ConfigError unless `path` is None or is named with one of the suffixes."""
    if path is not None and path.suffix not in suffixes:
        raise ConfigError(
            f"--{name} is {path}, expected a file named NAME{' or NAME'.join(suffixes)}"
        )


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        _require(name, getattr(config, name), lambda value: value > 0, "a number above 0")


def _require_non_negative(config: object, *names: str) -> None:
    for name in names:
        _require(name, getattr(config, name), lambda value: value >= 0, "a number of at least 0")


def _as_tuples(config: object, *names: str) -> None:
    """Let one text stand for a tuple of one, as Python code may give it."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str):
            object.__setattr__(config, name, (value,))


def _require_unset(config: object, names: Sequence[str], use: str, *, unless: bool) -> None:
    """Raise a ConfigError where an option has a value of its own that nothing would read.

    One that is given as its default asks for what happens anyway, and passes.
    """
    for name in names:
        value = getattr(config, name)
        if not unless and value != getattr(type(config), name):
            shown = ", ".join(value) if isinstance(value, tuple) else value
            raise ConfigError(
                f"--{name.replace('_', '-')} is {shown}, expected {use} with it. Leave it out"
            )


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
class StatusOptions(CommonOptions):
    """Without a command: what the workspace holds, what of it is stale, and what to run next."""


@dataclass(frozen=True, kw_only=True)
class ShowOptions(CommonOptions):
    """Print what a beton, teacher, store, subset or run says of itself."""

    path: str = field(kw_only=False)
    """Path of one of them, or the URL of a store."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(CommonOptions):
    """Try out what kdcache needs of this machine, and say what to do about what is missing."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(CommonOptions):
    """Run the steps of a pipeline whose inputs or options have changed."""

    pipeline: Annotated[str, Parameter(name=("--pipeline", "--recipe"))] = field(kw_only=False)
    """Name of a bundled pipeline (digits, cifar10, cifar100, tiny-imagenet, imagenet or
    imagenet-mdslr), or the path of a TOML file."""

    source: str | None = None
    """Images to pack, instead of the pipeline's own source."""

    dry_run: Annotated[bool, _FLAG] = False
    """Print which steps would run, and why, without running them."""


@dataclass(frozen=True, kw_only=True)
class PackOptions(CommonOptions):
    """Pack images into FFCV betons, with sample ids and a manifest."""

    source: str | None = field(default=None, kw_only=False)
    """An ImageFolder; image parquet (a file, or a folder of shards); WebDataset shards (a folder,
    or a pattern such as 'shards-{000..012}.tar'); hf:ORG/NAME; cifar10, cifar100, digits."""

    val_source: str | None = None
    """Likewise, of the evaluation split, where it is not part of the source."""

    label_key: str | None = None
    """Column of parquet or hf:, or field of WebDataset's .json, that holds the label; `label` (or
    .cls) when left out."""

    subset: str | None = None
    """Instead of a source: pack the samples of this subset (a name or path) out of the workspace's
    training beton, so that training on it reads no others. Ids and pixels stay the same."""

    write_mode: WriteMode = "auto"
    """How the beton holds pixels; auto: raw up to 64 px, jpg above."""

    max_resolution: int | None = None
    """Shrink images so that the longer side has at most this many pixels."""

    val_fraction: float | None = None
    """Share of a source with one split that becomes the evaluation split, in [0, 1)."""

    on_bad_image: BadImage = "stop"
    """When an image cannot be decoded: stop and name it, or skip it and list it in the manifest."""

    seed: int = 0
    """Seed of the draw behind --val-fraction."""

    num_workers: int | None = None
    """Processes that decode and encode; all cores, or fewer where there is little to do, when left
    out."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace betons that were packed from something else."""

    def __post_init__(self) -> None:
        """Check every range."""
        if (self.source is None) == (self.subset is None):
            raise ConfigError(
                f"--source is {self.source or 'not given'} and --subset {self.subset or 'neither'}"
                ", expected one of them. Run: kdcache pack SOURCE"
            )
        made_by_source = [
            *("val_source", "label_key", "write_mode", "max_resolution", "val_fraction"),
            *("on_bad_image", "seed", "num_workers"),
        ]
        _require_unset(self, made_by_source, "a SOURCE", unless=self.subset is None)
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
class _LoopOptions(CommonOptions):
    """How a model is trained, for students and teachers alike."""

    epochs: int | None = None
    """Passes over the data; enough steps for its size when left out."""

    steps: int | None = None
    """Optimiser steps instead of epochs; the last epoch ends with them."""

    optimizer: Optimizer = "sgd"
    """sgd (with Nesterov momentum) or adamw."""

    lr: float | None = None
    """Peak learning rate; scaled to the samples of a step when left out."""

    momentum: float | None = None
    """Of sgd, in [0, 1); 0.9 when left out."""

    weight_decay: float | None = None
    """Of matrices and filters, not of norms, biases and position embeddings; 5e-4 (sgd) or 0.05
    (adamw) when left out."""

    schedule: Schedule = "one-cycle"
    """Of the learning rate, step by step: up and down (one-cycle), down as a cosine, down by steps,
    or constant."""

    warmup: float | None = None
    """Share of all steps in which the rate rises first, in [0, 1); 0.15 (one-cycle) or 0 when left
    out."""

    milestones: Annotated[tuple[float, ...], Parameter(negative="")] = ()
    """step: share of all steps after which the rate falls, above --warmup and below 1; may be given
    again; 0.5 and 0.75 when left out."""

    gamma: float | None = None
    """step: factor of each fall, in (0, 1); 0.1 when left out."""

    ema: float | None = None
    """Also average the weights over the steps, with this decay in (0, 1), such as 0.999; evaluated
    and saved beside the model's own."""

    accumulate: int = 1
    """Batches whose gradients make one optimiser step."""

    clip_norm: float | None = None
    """Largest norm of the gradient; longer ones are shortened."""

    compile: Annotated[bool, _FLAG] = False
    """Compile the model with torch.compile; needs a C++ compiler."""

    eval_every: int = 1
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""

    tensorboard: Annotated[bool, _FLAG] = False
    """Write TensorBoard's events to the run folder too."""

    def __post_init__(self) -> None:
        """Check every range, and that no option is given that the others make void."""
        _require_positive(self, "epochs", "steps", "lr", "accumulate", "clip_norm", "eval_every")
        _require_non_negative(self, "weight_decay")
        if self.epochs is not None and self.steps is not None:
            raise ConfigError(
                f"--epochs is {self.epochs} and --steps is {self.steps}, expected one of them"
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
                    f"--milestones are {', '.join(map(str, self.milestones))}, expected rising "
                    f"shares above --warmup {self.warmup or 0:g} and below 1"
                )


@dataclass(frozen=True, kw_only=True)
class TrainTeacherOptions(_ViewOptions, _LoopOptions):
    """Train a teacher on all data, without distillation."""

    model: str = "resnet50"
    """resnet8/20/32/56, wrn-16-2, wrn-40-2 or vgg8 (CIFAR families), resnet18/34/50, mobilenet_v2,
    shufflenet_v2_x0_5 or _x1_0, another classifier of torchvision, or timm:NAME."""

    seed: int = 0
    """Seed of initialisation and order."""

    name: str | None = None
    """Name of the teacher in the workspace; the model's when left out."""

    save_epochs: str | None = None
    """Epochs whose weights are kept too, such as 2,5,10, as teachers NAME-epoch2, NAME-epoch5,
    ..."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a teacher that was trained otherwise."""

    def __post_init__(self) -> None:
        """Check every range."""
        _ViewOptions.__post_init__(self)
        _LoopOptions.__post_init__(self)
        _require_non_negative(self, "seed")
        if self.name is not None and not re.fullmatch(r"[\w.+-]+", self.name):
            raise ConfigError(
                f"--name is {self.name}, expected letters, digits, '.', '+', '-' and '_'"
            )
        _ = self.early_epochs

    @property
    def early_epochs(self) -> tuple[int, ...]:
        """The epochs of --save-epochs, counted from 1, rising.

        Raises:
            ConfigError: if the text is no list of such epochs.
        """
        if self.save_epochs is None:
            return ()
        words = self.save_epochs.split(",")
        epochs = tuple(int(word) for word in words if re.fullmatch(r"[1-9]\d*", word))
        if len(epochs) != len(words) or list(epochs) != sorted(set(epochs)):
            raise ConfigError(
                f"--save-epochs is {self.save_epochs}, expected rising epochs from 1, such as "
                "2,5,10"
            )
        return epochs


@dataclass(frozen=True, kw_only=True)
class BuildLogitsOptions(_ViewOptions):
    """Run the teacher once over all data and store its logits and scores."""

    teacher: Annotated[tuple[str, ...], _EACH] = ()
    """A path, a name in the workspace's teachers/, a model of torchvision for its published weights
    (resnet50, or resnet50.IMAGENET1K_V1), timm:NAME, or module:callable; the only one in teachers/
    when left out. Given again, the teachers answer together."""

    arch: Annotated[tuple[str, ...], _EACH] = ()
    """Model of a teacher given by path, where the file does not say: a classifier of torchvision,
    timm:NAME, or resnet8/20/32/56, wrn-16-2, wrn-40-2 or vgg8 (CIFAR families)."""

    ensemble: EnsembleMode = "probabilities"
    """Of several teachers the student learns the mean of the probabilities, or of the logits."""

    teacher_size: int | None = None
    """Height and width of the teacher's images, cut from the same boxes as the student's; the size
    that published weights were evaluated at, else the student's, when left out."""

    views: int = 8
    """Augmented views per image, besides the clean one."""

    subset: str | None = None
    """Name or path of a subset: augmented views of its samples alone; the clean view always covers
    all data, and is taken from another store of this teacher where there is one."""

    features: Annotated[bool, _FLAG] = False
    """Keep the penultimate activations of the clean view too, as float16."""

    codec: str = "dense"
    """How a row of an augmented view is stored: dense (float16), int8, topk(k=10),
    lowrank(k=10, r=64), sampled(draws=50, temperature=1), float32 (exact), or auto: the smallest
    that keeps the distillation gradient at temperatures 1 to 4."""

    store: str | None = None
    """Path or URL (s3://, gs://) of the store, instead of stores/TEACHER.zarr in the workspace."""

    part: str | None = None
    """Such as 2/4: make the second of four parts only, for kdcache merge."""

    allow_mixed: Annotated[bool, _FLAG] = False
    """Continue a store under another batch size, device or version; recorded with each shard."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a store that was built from something else."""

    def __post_init__(self) -> None:
        """Check every range."""
        super().__post_init__()
        _require_non_negative(self, "views")
        _require_positive(self, "teacher_size")
        _as_tuples(self, "teacher", "arch")
        _require_unset(self, ["ensemble"], "several --teacher", unless=len(self.teacher) > 1)
        if self.features and len(self.teacher) > 1:
            raise ConfigError(
                f"--features is given with {len(self.teacher)} teachers, expected one: an ensemble "
                "has no penultimate activations of its own. Leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(CommonOptions):
    """Read every byte of a store and of the betons, and name what is damaged."""

    store: str | None = None
    """Path or URL of the store; the last one built when left out."""

    repair: Annotated[bool, _FLAG] = False
    """Build the damaged shards of the store again, with its teacher."""

    teacher: Annotated[tuple[str, ...], _EACH] = ()
    """Ask this teacher again about a random sample of rows, and compare; given again, an ensemble,
    in the order of build-logits."""

    arch: Annotated[tuple[str, ...], _EACH] = ()
    """Model of a teacher given by path, where the file does not say."""

    allow_mixed: Annotated[bool, _FLAG] = False
    """Repair under another device or version than the store's; recorded with each shard."""

    rows: int = 256
    """Rows of each view that --teacher compares."""

    seed: int = 0
    """Seed of the draw of these rows."""

    device: Device = "auto"
    """auto: cuda where there is one."""

    num_workers: int | None = None
    """Threads that read and decode; all cores when left out."""

    def __post_init__(self) -> None:
        """Check every range."""
        _require_positive(self, "rows", "num_workers")
        _require_non_negative(self, "seed")
        _as_tuples(self, "teacher", "arch")
        asks = bool(self.teacher)
        _require_unset(self, ["rows", "seed"], "--teacher", unless=asks)
        _require_unset(self, ["allow_mixed"], "--repair", unless=self.repair)
        of_a_teacher = ["arch", "device", "num_workers"]
        _require_unset(self, of_a_teacher, "--teacher or --repair", unless=asks or self.repair)


@dataclass(frozen=True, kw_only=True)
class MergeOptions(CommonOptions):
    """Bring parts of one store together, such as those of build-logits --part."""

    parts: Annotated[list[str], Parameter(negative="")] = field(kw_only=False)
    """Paths or URLs of stores that were built from the same things."""

    out: str
    """Path or URL of the store to write."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a store at --out."""

    def __post_init__(self) -> None:
        """Check every range."""
        _require("parts", len(self.parts), lambda count: count >= 1, "at least one store")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(CommonOptions):
    """Write decoded logits, labels and scores for programs without zarr."""

    out: Path = field(kw_only=False)
    """File to write: NAME.parquet or NAME.npz."""

    store: str | None = None
    """Path or URL of the store; the last one built when left out."""

    view: int = 0
    """View to write; 0 is the clean one, with all samples and their scores."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a file that is there."""

    def __post_init__(self) -> None:
        """Check every range."""
        if self.out.suffix not in _EXPORTS:
            raise ConfigError(f"{self.out} is to be written, expected {' or '.join(_EXPORTS)}")
        _require_non_negative(self, "view")


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """What to keep of samples in the order of their difficulty; what `select_ids` takes."""

    method: Annotated[
        str,
        Parameter(
            help="Which part of the difficulty order to keep. window: from the quantile --start "
            "on; stratified: as many of each difficulty (CCS); beta: drawn, easier where less is "
            "kept; class-adaptive: more of the classes that the teacher gets wrong. One of "
            f"{METHODS.described()}."
        ),
    ] = "medium"
    """Method of `kdcache.selection.methods`, or module:name."""

    keep: float = 0.7
    """Share of the training set to keep, in (0, 1]."""

    balance: Balance = "proportional"
    """proportional: each class keeps its share; class: equal numbers; none: one global order."""

    min_per_class: int = 0
    """Samples that each class keeps at least, or all where it has fewer."""

    start: float | None = None
    """window: quantile of difficulty of the first sample that is kept, in [0, 1 - keep]."""

    cut: float | None = None
    """stratified: share of the hardest, probably mislabelled, to drop first, in [0, 1 - keep]."""

    peak: float | None = None
    """beta: quantile of difficulty that is drawn most, in [0, 1]; by --keep when left out."""

    concentration: float | None = None
    """beta: how narrow the distribution is; 0 draws all alike, 14 when left out."""

    seed: int = 0
    """Seed of random draws."""

    def __post_init__(self) -> None:
        """Check every range, and that no option is given that the others make void."""
        METHODS.require(self.method)
        if self.balance not in get_args(Balance):
            raise ConfigError(
                f"--balance is {self.balance!r}, expected one of {', '.join(get_args(Balance))}"
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
                "--method medium keeps the middle"
            )
        if self.method == "class-adaptive" and self.balance == "none":
            raise ConfigError(
                "--balance is none, expected proportional or class for --method class-adaptive, "
                "which divides the samples among the classes"
            )

    @property
    def draws(self) -> bool:
        """Whether chance has a part in it."""
        return method_entry(self.method).draws

    @property
    def reads_scores(self) -> bool:
        """Whether the scores have a part in it."""
        return method_entry(self.method).reads_scores


@dataclass(frozen=True, kw_only=True)
class SelectOptions(PruningOptions, CommonOptions):
    """Choose the sample ids to keep, from the scores in the store."""

    score: Annotated[
        str, Parameter(help=f"Difficulty score; higher is harder: {SCORES.described()}.")
    ] = "cross_entropy"
    """Difficulty score; higher is harder. One of `kdcache.scores.registry`, or module:name."""

    scores: Path | None = None
    """Scores of your own instead, higher is harder: a .npy by sample id, or a .csv or .parquet with
    a column `score` and one of `sample_id` and `file`."""

    parity: Literal["mdslr"] | None = None
    """mdslr: medium or random with the numbers per class of MDSLR's published code, by the
    cross-entropy of an augmented view."""

    teacher: str | None = None
    """Name of the store to read; the last one built when left out."""

    store: str | None = None
    """Path or URL of the store, instead of a --teacher of the workspace."""

    average_with: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    """Name of another teacher's store, whose scores are averaged in; may be given again."""

    compare: str | None = None
    """Name or path of another subset: what the two share, class by class."""

    export: Path | None = None
    """Also write every sample's score, and whether it is kept: .npy, .csv or .parquet."""

    out: Path | None = None
    """File to write, NAME.npz, instead of subsets/METHOD-KEEP....npz in the workspace."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a subset file that was made otherwise, and what is at --export."""

    def __post_init__(self) -> None:
        """Check every range, and that no option is given that the others make void."""
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
                    f"--method is {self.method}, expected medium or random for --parity mdslr"
                )
            decided = ["score", "scores", "balance", "min_per_class", "average_with"]
            _require_unset(self, decided, "no --parity", unless=False)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(CommonOptions):
    """Compute a difficulty score from the stored answers to the clean view, without a teacher."""

    name: Annotated[
        str, Parameter(help=f"Score that the store was built without: {SCORES.described()}.")
    ] = field(kw_only=False)
    """Score that the store was built without, of `kdcache.scores.registry`, or module:name."""

    teacher: str | None = None
    """Name of the store to read; the last one built when left out."""

    store: str | None = None
    """Path of the store, instead of a --teacher of the workspace."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a score file."""

    def __post_init__(self) -> None:
        """Check the name."""
        SCORES.require(self.name)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(_LoopOptions):
    """Train a student on a subset, with the teacher's cached logits."""

    subset: str | None = None
    """Name or path of a subset, or `full` for all data; the last one selected when left out."""

    teacher: str | None = None
    """Name of the store to learn from; the last one built when left out."""

    store: str | None = None
    """Path or URL of the store, instead of a --teacher of the workspace."""

    model: str | None = None
    """Student, any model of train-teacher; resnet18, or resnet8 up to 64 px, when left out."""

    batch_size: int | None = None
    """Samples of a batch; 128, or 32 for fewer than 5,000 samples, when left out."""

    loss: str = "kd"
    """What student and teacher are compared by: kd (T^2 KL), dkd(alpha=1, beta=8, warm_up=0.08)
    (decoupled), or dist(beta=2, gamma=2) (correlations)."""

    alpha: float | str | None = None
    """Weight of that comparison, in [0, 1]; the labels have the rest. A number, linear(0.9, 0.5) or
    cosine(0.9, 0.5) over the run, or auto: more where less is kept; 1: soft labels alone. 0.9 (kd)
    or 0.5 when left out."""

    temperature: float | None = None
    """Temperature of the comparison, above 0; 4, or 2 with --standardise, when left out."""

    reshape: Annotated[bool, _FLAG] = False
    """Give the teacher's logits of each sample the mean deviation of its class (MDSLR)."""

    standardise: Annotated[bool, _FLAG] = False
    """Give both logits of each sample mean 0 and deviation 1 first."""

    label_smoothing: float = 0.0
    """Share of the label that goes to all classes alike, in [0, 1)."""

    mixup: float | None = None
    """Average images in pairs, in shares drawn from Beta(a, a); labels and the teacher's
    probabilities in the same shares, for the teacher did not see the mixture."""

    cutmix: float | None = None
    """Likewise, but put a box of one image into the other. With both, each batch draws one."""

    kd: bool = True
    """--no-kd: labels alone, for comparison."""

    live_teacher: str | None = None
    """Ask this teacher in each step, for comparison, instead of reading a store: a path, a name in
    the workspace's teachers/, or module:callable."""

    arch: str | None = None
    """Model of a --live-teacher given by path, where the file does not say."""

    views: int | None = None
    """Show so many views in turn: the first of the store, all of it when left out; 0: fresh views
    with the answers to the clean one, which is worse. --live-teacher: as a store of so many would,
    a fresh view in each epoch when left out."""

    seed: int = 0
    """Seed of initialisation and order; the views' seed belongs to the store."""

    seeds: int = 1
    """Train so many students, with --seed and the seeds after it, one after the other."""

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
    """Run folder, instead of a new runs/STUDENT-SUBSET-sSEED in the workspace; with --seeds the
    folder of their run folders, s0, s1, ..."""

    resume: Annotated[bool, _FLAG] = False
    """Continue the run of --out, or the newest run of this name, from its last epoch; with --seeds
    those that are not finished, or not begun."""

    def __post_init__(self) -> None:
        """Check every range, and that no option is given that the others make void."""
        super().__post_init__()
        if self.reshape and not self.kd:
            raise ConfigError("--reshape is given with --no-kd, expected one: it needs a teacher")
        of_teacher = ["loss", "alpha", "temperature", "standardise"]
        _require_unset(self, of_teacher, "--kd", unless=self.kd)
        _require_positive(self, "temperature", "batch_size", "num_workers", "seeds")
        _require_non_negative(self, "seed", "views")
        is_live = self.live_teacher is not None
        _require_unset(self, ["kd", "reshape"], "no --live-teacher", unless=not is_live)
        _require_unset(self, ["pixels"], "cached logits", unless=self.kd and not is_live)
        _require_unset(self, ["arch"], "--live-teacher", unless=is_live)
        _require_unset(self, ["views"], "--kd", unless=self.kd)
        if is_live and self.views == 0:
            raise ConfigError(
                "--views is 0, expected at least 1 with --live-teacher, which answers what the "
                "student sees"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(CommonOptions):
    """Measure a trained model: accuracy, likelihood and calibration."""

    weights: str | None = field(default=None, kw_only=False)
    """Folder or name of a run, or a safetensors file; the last run that was finished when left
    out."""

    which: Weights = "last"
    """Of a run: the weights after the last epoch, those of the best accuracy, or their average."""

    model: Annotated[str | None, Parameter(name=("--model", "--arch"))] = None
    """Model of a file that does not say."""

    split: Split = "val"
    """Images to measure it on, in the clean view."""

    device: Device = "auto"
    """auto: cuda where there is one."""

    precision: Precision | None = None
    """Arithmetic of the model's body; fp32 on a CPU, bf16 on CUDA."""

    num_workers: int | None = None
    """Threads that read and decode; all cores when left out."""

    def __post_init__(self) -> None:
        """Check every range."""
        _require_positive(self, "num_workers")


@dataclass(frozen=True, kw_only=True)
class StudyOptions(CommonOptions):
    """Train a grid of students in the background, resumable at any point; or print its table."""

    grid: str = field(kw_only=False)
    """Path of a TOML file that lists teachers and blocks of settings; or digits, which is ours."""

    source: Annotated[tuple[str, ...], _EACH] = ()
    """NAME=SOURCE: what to pack for the grid's data set NAME; its name when left out. May be given
    again."""

    results: Path | None = None
    """Parquet file with one row per student; studies/GRID.parquet in the workspace when left out.
    What is in it is not trained again."""

    block: Annotated[tuple[str, ...], _EACH] = ()
    """Name of a block: run or show this one alone. May be given again."""

    jobs: int = 1
    """Students at once; each works with one thread."""

    part: str | None = None
    """Such as 2/8: train every eighth student from the second on, as on several machines."""

    until: str | None = None
    """Time of day, such as 02:30, local: stop then, and continue with the next call."""

    tune_fraction: float | None = None
    """Choose settings: every student is evaluated on this share of the training set, and the test
    set is never read."""

    retry: Annotated[bool, _FLAG] = False
    """Train those again that failed."""

    commit: str | None = None
    """Commit that the package was built from, where it does not say; it is recorded."""

    dry_run: Annotated[bool, _FLAG] = False
    """Say what would be made and trained; do nothing."""

    table: Annotated[tuple[str, str] | None, _EACH] = None
    """ROWS COLUMNS: print accuracies over these settings instead; several, such as method,kd, with
    commas."""

    where: Annotated[tuple[str, ...], _EACH] = ()
    """SETTING=VALUE: show only such students. May be given again."""

    plot: Path | None = None
    """Also draw the table: NAME.png, NAME.pdf or NAME.svg; needs 'kdcache[plot]'."""

    def __post_init__(self) -> None:
        """Check every range, and that no option is given that the others make void."""
        _require_positive(self, "jobs")
        _require("tune_fraction", self.tune_fraction, lambda f: 0 < f < 1, "a number in (0, 1)")
        _as_tuples(self, "source", "block", "where")
        for name in ("source", "where"):
            for text in getattr(self, name):
                if not re.fullmatch(r"[^=]+=.+", text):
                    raise ConfigError(f"--{name} is {text}, expected NAME=VALUE")
        if self.until is not None and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", self.until):
            raise ConfigError(f"--until is {self.until}, expected a time of day such as 02:30")
        require_suffix("plot", self.plot, FIGURES)
        require_suffix("results", self.results, (".parquet",))
        _require_unset(self, ["where", "plot"], "--table", unless=self.table is not None)
