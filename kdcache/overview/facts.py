"""The facts that `kdcache show` gives about each kind of file, as types.

They are dictionaries at run time, because they come from manifests. A manifest holds the keys that
apply to it; those of a class with `total=False` may be missing.
"""

from __future__ import annotations

from typing import TypedDict

from kdcache.selection.provenance import Provenance

FirstImage = TypedDict("FirstImage", {"file": str, "class": str})
"""The name of an image in its source, and of its class."""


class FirstImages(TypedDict, total=False):
    """The first images of a beton or subset."""

    first_images: dict[str, FirstImage]
    """By sample id, as text; missing if the workspace has no names."""


class BetonFacts(FirstImages):
    """Facts about a beton; see `kdcache.data.beton_manifest`."""

    samples: int
    classes: int
    image_size: int
    policy: str
    write_mode: str
    mean: list[float]
    std: list[float]
    made_from: object
    """The source and the options of `pack`; it depends on the kind of source."""
    fingerprint: str
    bytes: int
    class_names: list[str]


class LoopFacts(TypedDict, total=False):
    """Settings of a training loop, as the options of `train` describe them."""

    seed: int
    batch_size: int
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    warmup: float | None
    milestones: list[float]
    gamma: float | None
    epochs: int
    steps: int | None
    precision: str
    accumulate: int
    clip_norm: float | None
    ema: float | None
    compile: bool
    eval_every: int
    policy: str
    pixel_definition: str
    decode: str
    view_seed: int
    image_size: int
    data_fingerprint: str


class TeacherFacts(LoopFacts, total=False):
    """Facts about a file of weights; one of another program has only `tensors` and `bytes`."""

    arch: str
    stem: str | None
    classes: int
    class_names: list[str]
    mean: list[float]
    std: list[float]
    loss: object
    """Settings that a teacher's training does not use."""
    epoch: int
    """Epoch of the weights, counted from 1, if it is not the last."""
    top1: float | None
    digest: str
    tensors: int
    bytes: int


class StoreFacts(TypedDict):
    """Facts about a store; see `kdcache.store.manifest`."""

    teacher: str
    teacher_arch: str
    teacher_digest: str
    teacher_mean: list[list[float]]
    """Normalisation of each teacher."""
    teacher_std: list[list[float]]
    teacher_size: int
    samples: int
    classes: int
    views: int
    rows: int
    codec: str
    row_bytes: int | None
    features: bool
    policy: str
    view_seed: int
    image_size: int
    precision: str
    batch_size: int
    device: str
    versions: dict[str, str]
    """Versions of the libraries that decide the last bits, by package."""
    data_fingerprint: str
    bytes: int


class SubsetFacts(FirstImages, Provenance, total=False):
    """Facts about a subset."""

    kept: int


class RunConfig(LoopFacts, total=False):
    """Settings of a run: `model` and what follows for a student, `arch` for a teacher."""

    arch: str
    stem: str | None
    classes: int
    mean: list[float]
    std: list[float]
    model: str
    loss: str
    alpha: float | str
    temperature: float
    reshape: bool
    standardise: bool
    label_smoothing: float
    mixup: float | None
    cutmix: float | None
    loss_code_digest: str
    kd: bool
    order: str
    subset: str
    samples: int
    sample_ids_digest: str | None
    live_teacher: str | None
    teacher_digest: str | None
    teacher_mean: list[float]
    """Normalisation of a live teacher."""
    teacher_std: list[float]
    teacher_size: int
    store_digest: str | None
    codec: str | None
    views: int | None


class Environment(TypedDict):
    """Machine and versions that a run started with."""

    device: str
    cores: int
    threads: int
    platform: str
    python: str
    kdcache: str
    torch: str
    ffcv: str
    numpy: str
    zarr: str


class RunFacts(TypedDict):
    """Facts about a run."""

    epochs_done: int
    top1_last: float | None
    top1_best: float | None
    config: RunConfig
    environment: Environment


Facts = BetonFacts | TeacherFacts | StoreFacts | SubsetFacts | RunFacts
