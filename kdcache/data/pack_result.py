"""The result of `kdcache pack`."""

from __future__ import annotations

from dataclasses import dataclass

from kdcache.data.beton import Beton
from kdcache.results import JSON, Result


@dataclass(frozen=True, kw_only=True)
class PackResult(Result):
    """The betons that `pack` wrote or found up to date."""

    fingerprint: str
    """Hex sha256 of the content of the training images."""
    train: Beton
    """The training images; with `subset`, the images of the subset."""
    val: Beton | None
    """The evaluation split, if there is one."""
    skipped: int
    """Images that could not be decoded and were left out."""

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object; a beton is described by `samples`, `classes` and `path`."""
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
