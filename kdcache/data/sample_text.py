"""Name a sample in a message."""

from __future__ import annotations

from kdcache.data.beton import Beton


def describe_sample(beton: Beton, sample_id: int) -> str:
    """Return a sample's id and class for a message, such as `sample 17 (class 'dog')`."""
    (position,) = beton.positions([sample_id])
    label = int(beton.labels[position])
    return f"sample {sample_id} (class {beton.manifest.class_names[label]!r})"
