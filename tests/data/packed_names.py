"""The names that a beton keeps of its images."""

from __future__ import annotations

from pathlib import Path

from kdcache.data.beton_manifest import BetonManifest
from kdcache.data.names import load_names


def names_of(beton: Path) -> list[str]:
    """Return the names of a beton's images, by position."""
    return load_names(beton, BetonManifest.load(beton))
