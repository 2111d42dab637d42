"""What each command can be told: one frozen dataclass per command, in the order of the walk.

A class here is the single source of a command's options, help text, recipe keys and validation.
They stand together, beside nothing heavy, because `kdcache --help` reads all of them and must not
import torch, and because they inherit each other's fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from kdcache.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
WriteMode = Literal["auto", "raw", "jpg"]
Method = Literal[
    "random", "easy", "hard", "medium", "window", "stratified", "beta", "class-adaptive"
]
Score = Literal["cross_entropy", "entropy", "margin", "least_confidence", "el2n"]
Order = Literal["random", "block-random", "sequential"]
Balance = Literal["proportional", "class", "none"]

_FLAG = Parameter(negative="")
_EXPORTS = (".parquet", ".npz")


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


def _require_unset(config: object, names: Sequence[str], use: str, *, unless: bool) -> None:
    """Raise a ConfigError where an option has a value of its own that nothing would read."""
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
class PackOptions(CommonOptions):
    """Pack images into FFCV betons, with sample ids and a manifest."""

    source: str | None = field(default=None, kw_only=False)
    """`digits`, an ImageFolder, or a Hugging Face image parquet (a file, or a folder of shards)."""

    subset: str | None = None
    """Instead of a source: pack the samples of this subset (a name or path) out of the workspace's
    training beton, so that training on it reads no others. Ids and pixels stay the same."""

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
        if (self.source is None) == (self.subset is None):
            raise ConfigError(
                f"--source is {self.source or 'not given'} and --subset {self.subset or 'neither'}"
                ", expected one of them. Run: kdcache pack SOURCE"
            )
        made_by_source = ["write_mode", "max_resolution", "val_fraction", "seed", "num_workers"]
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


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(CommonOptions):
    """Read every byte of a store and of the betons, and name what is damaged."""

    store: str | None = None
    """Path or URL of the store; the last one built when left out."""

    repair: Annotated[bool, _FLAG] = False
    """Build the damaged shards of the store again, with its teacher."""

    teacher: str | None = None
    """Ask this teacher again about a random sample of rows, and compare."""

    arch: str | None = None
    """Model of a teacher given by path, where the file does not say."""

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
class SelectOptions(CommonOptions):
    """Choose the sample ids to keep, from the scores in the store."""

    method: Method = "medium"
    """Which part of the difficulty order to keep. window: from the quantile --start on; stratified:
    as many of each difficulty (CCS); beta: drawn, easier where less is kept; class-adaptive: more
    of the classes that the teacher gets wrong."""

    score: Score = "cross_entropy"
    """Difficulty score in the store; higher is harder."""

    scores: Path | None = None
    """Scores of your own instead, higher is harder: a .npy by sample id, or a .csv or .parquet with
    a column `score` and one of `sample_id` and `file`."""

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

    parity: Literal["mdslr"] | None = None
    """mdslr: medium or random with the numbers per class of MDSLR's published code, by the
    cross-entropy of an augmented view."""

    seed: int = 0
    """Seed of random draws."""

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
    """File to write, instead of subsets/METHOD-KEEP....npz in the workspace."""

    overwrite: Annotated[bool, _FLAG] = False
    """Replace a subset file that was made otherwise."""

    def __post_init__(self) -> None:
        """Check every range, and that no option is given that the others make void."""
        _require("keep", self.keep, lambda keep: 0 < keep <= 1, "a number in (0, 1]")
        _require_non_negative(self, "seed", "min_per_class", "concentration")
        left = round(1 - self.keep, 9)
        for name in ("start", "cut"):
            rule = f"a number in [0, {left:g}], what --keep {self.keep:g} leaves"
            _require(name, getattr(self, name), lambda share: 0 <= share <= left, rule)
        _require("peak", self.peak, lambda peak: 0 <= peak <= 1, "a number in [0, 1]")
        for method, names in {
            "window": ["start"],
            "stratified": ["cut"],
            "beta": ["peak", "concentration"],
        }.items():
            _require_unset(self, names, f"--method {method}", unless=self.method == method)
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
        _require_unset(self, ["score", "average_with"], "no --scores", unless=self.scores is None)
        if self.parity is not None:
            if self.method not in ("medium", "random"):
                raise ConfigError(
                    f"--method is {self.method}, expected medium or random for --parity mdslr"
                )
            decided = ["score", "scores", "balance", "min_per_class", "average_with"]
            _require_unset(self, decided, "no --parity", unless=False)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(CommonOptions):
    """Train a student on a subset, with the teacher's cached logits."""

    subset: str | None = None
    """Name or path of a subset, or `full` for all data; the last one selected when left out."""

    teacher: str | None = None
    """Name of the store to learn from; the last one built when left out."""

    store: str | None = None
    """Path or URL of the store, instead of a --teacher of the workspace."""

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

    reshape: Annotated[bool, _FLAG] = False
    """Give the teacher's logits of each sample the mean deviation of its class (MDSLR)."""

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
        if self.reshape and not self.kd:
            raise ConfigError("--reshape is given with --no-kd, expected one: it needs a teacher")
        _require("alpha", self.alpha, lambda alpha: 0 <= alpha <= 1, "a number in [0, 1]")
        _require_positive(self, "temperature", "epochs", "batch_size", "lr", "num_workers")
        _require_non_negative(self, "seed")
