"""Write a variant of a source as parquet for `kdcache pack`: label noise, or a tuning split.

A tuning split is made from the training split alone: a fraction of each class becomes the
evaluation split. So no file of a tuning cell contains an image of the test set. Label noise is
added after the split, to the training labels only.

The module runs as a process:
python -m kdcache.studies.variant SOURCE FOLDER LABEL_NOISE TUNE_FRACTION.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.data.source import (
    RelabelledSplit,
    Source,
    Split,
    split_off_validation,
    split_train_val,
)
from kdcache.data.sources import open_source
from kdcache.data.tables import VIEW_POLICY
from kdcache.errors import KDCacheError, shell_line
from kdcache.files import replace_atomically
from kdcache.rng import generator

SEED = 0
"""Seed of the split and of the noise, the same for every cell."""

_ROWS_PER_GROUP = 1_000


def write_variant(source: str, folder: Path, *, label_noise: float, tune_fraction: float) -> None:
    """Write `val.parquet` and then `train.parquet`.

    Args:
        source: what `kdcache pack` reads.
        folder: folder of the two files.
        label_noise: fraction of the training labels that are changed to another class, in [0, 1).
        tune_fraction: fraction of each class of the training split that becomes `val`, in [0, 1);
            0 keeps the source's own evaluation split.

    Raises:
        ConfigError: if the source does not exist.
        DatasetError: if it has no usable images.
    """
    opened = open_source(source)
    splits = split_train_val(opened, None, SEED)
    if tune_fraction:
        train_only = replace(opened, splits={"train": splits["train"]})
        splits = split_off_validation(train_only, tune_fraction, SEED)
    if label_noise:
        train = splits["train"]
        labels = noisy_labels(train.labels, len(opened.class_names), label_noise)
        splits = splits | {"train": RelabelledSplit(train, labels)}
    for name in sorted(
        splits, reverse=True
    ):  # train is written last, so its file means that both exist
        _write(folder / f"{name}.parquet", splits[name], opened)


def noisy_labels(
    labels: npt.NDArray[np.int64], classes: int, share: float
) -> npt.NDArray[np.int64]:
    """Return labels of which floor(share N + 0.5) are changed to another class, drawn uniformly.

    Args:
        labels: (N,) in [0, classes).
        classes: number of classes, at least 2.
        share: fraction of the labels that change, in [0, 1).
    """
    rng = generator(SEED, "label-noise")
    count = int(np.floor(share * len(labels) + 0.5))
    wrong = rng.permutation(len(labels))[:count]
    changed = labels.copy()
    changed[wrong] = (labels[wrong] + rng.integers(1, classes, size=count)) % classes
    return changed


def _write(path: Path, split: Split, source: Source) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {b"class_names": json.dumps(source.class_names).encode()}
    if source.default_policy is not None:
        metadata[VIEW_POLICY] = source.default_policy.encode()
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)
    with replace_atomically(path) as partial, pq.ParquetWriter(partial, schema) as file:
        for start in range(0, len(split.labels), _ROWS_PER_GROUP):
            positions = range(start, min(start + _ROWS_PER_GROUP, len(split.labels)))
            images = [{"bytes": split.read(i), "path": split.name(i)} for i in positions]
            labels = split.labels[positions.start : positions.stop]
            file.write_table(pa.table([images, labels], schema=schema))


def main(arguments: list[str]) -> int:
    """Write a variant; return the exit status."""
    source, folder, label_noise, tune_fraction = arguments
    try:
        write_variant(
            source,
            Path(folder),
            label_noise=float(label_noise),
            tune_fraction=float(tune_fraction),
        )
    except (KDCacheError, OSError) as error:
        sys.stderr.write(f"kdcache: {shell_line(error)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
