"""The result of `kdcache pack`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kdcache.data.beton import Beton
from kdcache.data.source import LeftOut
from kdcache.errors import ConfigError
from kdcache.results import JSON, Result


@dataclass(frozen=True, kw_only=True)
class PackPreview(Result):
    """What a pack would write; the result of a dry run."""

    samples: Mapping[str, int]
    """Split -> number of images."""
    class_names: tuple[str, ...]
    class_sizes: Mapping[str, tuple[int, ...]]
    """Split -> number of images of each class."""
    left_out: tuple[LeftOut, ...]
    """What is not packed, one entry for each reason."""
    notes: tuple[str, ...]
    """How the source was understood."""
    warnings: tuple[str, ...]
    """What looks odd."""

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object."""
        classes: dict[str, JSON] = {}
        for label, name in enumerate(self.class_names):
            classes[f"{label} {name}"] = {s: n[label] for s, n in self.class_sizes.items()}
        return {
            **self.samples,
            "num_classes": len(self.class_names),
            "classes": classes,
            "left_out": {
                one.why: {"files": len(one.names), "first": one.names[0]} for one in self.left_out
            },
            "left_out_files": [{"why": o.why, "names": list(o.names)} for o in self.left_out],
            "notes": [{"message": note} for note in self.notes],
            "warnings": [{"message": warning} for warning in self.warnings],
        }


@dataclass(frozen=True, kw_only=True)
class PackResult(Result):
    """The betons that `pack` wrote or found up to date."""

    fingerprint: str | None
    """Hex sha256 of the content of the training images; None after a dry run."""
    betons: Mapping[str, Beton]
    """`train`, and `val` if there is one; empty after a dry run."""
    skipped: int
    """Images that could not be decoded and were left out."""
    preview: PackPreview | None = None
    """What would be packed, after a dry run."""

    @property
    def train(self) -> Beton:
        """The training images; with `subset`, the images of the subset.

        Raises:
            ConfigError: after a dry run, which packs nothing.
        """
        if "train" not in self.betons:
            raise ConfigError("a dry run packs nothing, expected a pack without --dry-run")
        return self.betons["train"]

    @property
    def val(self) -> Beton | None:
        """The evaluation split, if there is one."""
        return self.betons.get("val")

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object; a beton is described by `samples`, `classes` and `path`."""
        if self.preview is not None:
            return self.preview.to_json()
        return {
            "fingerprint": self.fingerprint,
            "train": _describe_beton(self.train),
            "val": None if self.val is None else _describe_beton(self.val),
            "skipped": self.skipped,
        }


def _describe_beton(beton: Beton) -> dict[str, JSON]:
    return {
        "samples": beton.manifest.samples,
        "classes": beton.manifest.classes,
        "path": str(beton.path.resolve()),
    }
