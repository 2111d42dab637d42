"""`kdcache show`: the card of a beton, teacher, store, subset or run.

A card is made from manifests alone, and neither torch nor ffcv is loaded, so it takes no longer for
large files. `kdcache verify` reads the data themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from kdcache.errors import CacheCorruptError, ConfigError, DatasetError, WeightsError
from kdcache.models.description import WeightsDescription, parse_metadata
from kdcache.options import ShowOptions
from kdcache.overview.facts import (
    BetonFacts,
    Facts,
    FirstImages,
    RunFacts,
    StoreFacts,
    SubsetFacts,
    TeacherFacts,
)
from kdcache.progress import counted
from kdcache.results import JSON, Result, as_json
from kdcache.workspace import Workspace

if TYPE_CHECKING:
    from kdcache.store.format.location import Location

SHOWN_IMAGES = 3
"""Number of images whose names a card shows."""

Kind = Literal["beton", "teacher", "store", "subset", "run"]


@dataclass(frozen=True)
class Card:
    """The description of one file or folder of a workspace."""

    kind: Kind
    path: str
    summary: str
    """The description in one line."""
    facts: Facts
    """In the order in which they are shown."""
    data_fingerprint: str | None
    """Fingerprint of the full training data that it was made from; None if it is not recorded."""
    unfinished: str | None = None
    """What is missing, and the command that continues; None if it is complete."""


@dataclass(frozen=True, kw_only=True)
class ShowResult(Result):
    """The description of a beton, teacher, store, subset or run."""

    kind: Literal["beton", "teacher", "store", "subset", "run"]
    path: Path | str
    """Path, or URL of a store."""
    facts: Facts
    """The content of its manifest, and what was counted; its type depends on `kind`."""
    unfinished: str | None
    """What is missing and how to continue; None if it is complete."""

    def to_json(self) -> dict[str, JSON]:
        """Return the facts as keys of the object."""
        content: dict[str, JSON] = {"kind": self.kind, "path": str(self.path)}
        content |= {name: as_json(value) for name, value in self.facts.items()}
        return content if self.unfinished is None else content | {"unfinished": self.unfinished}


def show(options: ShowOptions) -> ShowResult:
    """Return what a beton, teacher, store, subset or run says about itself.

    Raises:
        ConfigError: if there is nothing, or nothing of ours.
        CacheCorruptError: if a manifest is damaged.
    """
    card = card_of(options.path)
    path = card.path if "://" in card.path else Path(card.path).resolve()
    images = _first_images(card, Workspace(Path(options.workspace)))
    facts = cast("Facts", {**card.facts, **images})
    return ShowResult(kind=card.kind, path=path, facts=facts, unfinished=card.unfinished)


def _first_images(card: Card, workspace: Workspace) -> FirstImages:
    """Return the first images of a beton or subset by sample id, with their names in the source.

    They show at a glance where the images come from, and in which order.
    """
    if card.kind not in ("beton", "subset"):
        return {}
    from kdcache.data.beton import open_beton
    from kdcache.data.names import load_names
    from kdcache.selection.subset import Subset

    path = Path(card.path)
    if card.kind == "beton":
        beton = open_beton(path)
        positions = range(min(SHOWN_IMAGES, len(beton)))
    else:
        in_workspace = path.parent.name == "subsets"
        packed = (Workspace(path.parent.parent) if in_workspace else workspace).beton("train")
        if not packed.exists():
            return {}
        beton = open_beton(packed)
        if card.data_fingerprint not in (None, beton.manifest.fingerprint):
            return {}
        first = Subset.load(path).sample_ids[:SHOWN_IMAGES]
        positions = beton.positions(first).tolist()
    names = load_names(beton.path, beton.manifest)
    classes = beton.manifest.class_names
    return {
        "first_images": {
            str(beton.sample_ids[position]): {
                "file": names[position],
                "class": classes[beton.labels[position]],
            }
            for position in positions
        }
    }


def card_of(given: Path | str) -> Card:
    """Return the card of a path or URL; see `show`."""
    from kdcache.store.format.location import exists, parse_location

    location = parse_location(given)
    if isinstance(location, Path):
        for matches, make_card in _KINDS:
            if matches(location):
                return make_card(location)
        if not location.exists():
            raise ConfigError(
                f"{given} does not exist, expected a beton, teacher, store, subset or run. "
                "Run kdcache without a command to list what a workspace holds"
            )
    if exists(location):
        return store_card(location)
    raise ConfigError(
        f"{given} is not a file of kdcache, expected SPLIT.beton, a .safetensors file, a logit "
        "store, a subset's .npz or a run folder"
    )


def beton_card(path: Path) -> Card:
    """Return the card of a beton, from its manifest."""
    from kdcache.data.beton_manifest import BetonManifest, pack_again

    about = BetonManifest.load(path)
    if (size := path.stat().st_size) != about.beton_bytes:
        raise DatasetError(
            f"{path} has {size:,} bytes, expected {about.beton_bytes:,} as in its manifest. "
            f"{pack_again(path, about)}"
        )
    images = f"{about.samples:,} images of {about.classes:,} classes"
    facts: BetonFacts = {
        "samples": about.samples,
        "classes": about.classes,
        "image_size": about.image_size,
        "policy": about.policy,
        "write_mode": about.write_mode,
        "mean": about.mean,
        "std": about.std,
        "made_from": about.made_from,
        "fingerprint": about.fingerprint,
        "bytes": about.beton_bytes,
        "class_names": about.class_names,
    }
    summary = f"{images}, {about.image_size} px, {about.policy}"
    return Card("beton", str(path), summary, facts, about.data_fingerprint)


def teacher_card(path: Path) -> Card:
    """Return the card of a weights file; other programs' files have only a tensor count."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about: Any = parse_metadata(file.metadata(), path)
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is not readable as safetensors ({error}). Train or copy it again"
        ) from error
    facts: TeacherFacts = about | {"tensors": len(shapes), "bytes": path.stat().st_size}
    described = WeightsDescription.parse(about, path)
    model = described.arch or "model not recorded"
    summary = model if described.top1 is None else f"{model}, top-1 {described.top1:.2f} %"
    return Card("teacher", str(path), summary, facts, described.data_fingerprint)


def store_card(location: Location) -> Card:
    """Return the card of a store, from its manifest and the views that are complete."""
    from kdcache.store.format.codec_file import read_decision
    from kdcache.store.format.layout import FEATURES, existing_views, is_complete, open_group
    from kdcache.store.format.location import open_zarr_store, size_bytes

    group, about = open_group(open_zarr_store(location, read_only=True), path=str(location))
    views = existing_views(group)
    missing = [view for view in views if not is_complete(group, view)]
    decision = read_decision(group, about)
    facts: StoreFacts = {
        "teacher": about.teacher,
        "teacher_arch": about.teacher_arch,
        "teacher_digest": about.teacher_digest,
        "teacher_mean": about.mean,
        "teacher_std": about.std,
        "teacher_size": about.teacher_size,
        "samples": about.samples,
        "classes": about.classes,
        "views": max(len(views) - 1, 0),
        "rows": about.rows,
        "codec": str(decision.codec) if decision else f"{about.codec}, not decided yet",
        "row_bytes": decision.codec.row_bytes if decision else None,
        "features": FEATURES in group,
        "policy": about.policy,
        "view_seed": about.view_seed,
        "image_size": about.image_size,
        "precision": about.precision,
        "batch_size": about.batch_size,
        "device": about.device,
        "versions": about.versions,
        "data_fingerprint": about.data_fingerprint,
        "bytes": size_bytes(location),
    }
    unfinished = None
    if missing or not views:
        complete = len(views) - len(missing)
        unfinished = (
            f"{complete} of {len(views)} views are complete. "
            "Run kdcache build-logits again with the same arguments; it continues"
        )
    summary = (
        f"{about.teacher_arch}, the clean view of {about.samples:,} samples and "
        f"{facts['views']} of {about.rows:,}, {facts['codec']}"
    )
    return Card("store", str(location), summary, facts, about.data_fingerprint, unfinished)


def subset_card(path: Path) -> Card:
    """Return the card of a subset: how many samples it keeps, and how they were chosen."""
    from kdcache.selection.subset import Subset

    subset = Subset.load(path)
    about = subset.provenance
    facts = cast("SubsetFacts", {"kept": len(subset), **about})
    how = f", {about['method']}" if "method" in about else ""
    summary = f"{len(subset):,} samples{how}"
    return Card("subset", str(path), summary, facts, about.get("data_fingerprint"))


def run_card(path: Path) -> Card:
    """Return the card of a run: its configuration, progress and accuracies."""
    from kdcache.training.run_config import read_config

    content = read_config(path)
    config = content["config"]
    lines = _metrics(path)
    top1 = [line["top1"] for line in lines if line.get("top1") is not None]
    done, epochs = (lines[-1]["epoch"] if lines else 0), config["epochs"]
    facts: RunFacts = {
        "epochs_done": done,
        "top1_last": top1[-1] if top1 else None,
        "top1_best": max(top1, default=None),
        "config": config,
        "environment": content["environment"],
    }
    unfinished = None
    if done < epochs:
        command = f"train with the same arguments and --resume --out {path}"
        if "samples" not in config:
            command = "train-teacher again with the same arguments; it continues"
        unfinished = f"{done} of {counted(epochs, 'epoch')} done. Run kdcache {command}"
    accuracy = f", top-1 {top1[-1]:.2f} %" if top1 else ""
    kind = "" if config.get("kd", True) else ", no KD"
    on = f"{config['samples']:,} samples{kind}" if "samples" in config else "all data, a teacher"
    model = config.get("model", config.get("arch"))
    summary = f"{model} on {on}, {done} of {counted(epochs, 'epoch')}{accuracy}"
    return Card("run", str(path), summary, facts, config["data_fingerprint"], unfinished)


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise CacheCorruptError(
            f"{path} is damaged: {error}. Remove its last line, or train again"
        ) from error


_KINDS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Card]], ...] = (
    (lambda path: path.suffix == ".beton" and path.exists(), beton_card),
    (lambda path: path.suffix == ".safetensors" and path.exists(), teacher_card),
    (lambda path: path.suffix == ".npz" and path.exists(), subset_card),
    (lambda path: (path / "config.json").is_file(), run_card),
)
