"""Read Hugging Face data sets with the library `datasets`: by name, or saved by `save_to_disk`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.data.classes import Part, relabelled, unify
from kdcache.data.source import LeftOut, Source, Split
from kdcache.data.source_kind import SourceKind
from kdcache.data.split_names import EVALUATION_NAMES, choose_splits, group_by_name
from kdcache.data.tables import Columns, choose_columns, validate_labels
from kdcache.errors import ConfigError, DatasetError
from kdcache.progress import logger

PREFIX = "hf:"

_SAVED = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` writes for several splits and for a single split."""


@dataclass(frozen=True)
class HuggingFaceSplit:
    """One split of a data set; its images are encoded files, in the table or beside it."""

    images: Any
    """`datasets.Dataset` that holds only the images, not decoded. It pickles as the paths of its
    files."""
    image: str
    """Name of the image column."""
    labels: npt.NDArray[np.int64]
    title: str

    def read(self, position: int) -> bytes:
        """Return the bytes of the row's image."""
        row = self.images[position][self.image]
        if row is None:
            raise DatasetError("the row holds no image")
        content: bytes | None = row["bytes"]
        return Path(row["path"]).read_bytes() if content is None else content

    def name(self, position: int) -> str:
        """Return the data set, the split and the row."""
        return f"{self.title}, row {position}"


def is_saved_by_datasets(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in _SAVED)


def hugging_face(source: str, label_key: str | None = None) -> Source:
    """Open `hf:ORG/NAME`, `hf:ORG/NAME/CONFIG`, `hf:FOLDER`, or a folder of `save_to_disk`.

    Args:
        source: value of SOURCE.
        label_key: name of the label column; None: `label`.

    Raises:
        ConfigError: if the library `datasets` is not installed.
        DatasetError: if the data set cannot be loaded or has no images with labels.
    """
    named = source.startswith(PREFIX)
    where = source if named else str(Path(source).resolve())
    loaded = _load(source.removeprefix(PREFIX), where)
    found, others = group_by_name(loaded)
    for split, names in found.items():
        if len(names) > 1:
            raise DatasetError(
                f"{where} has the splits {' and '.join(names)}, expected one called {split}. "
                "Save the one that is meant by itself"
            )
    if not found:
        raise DatasetError(
            f"{where} has the splits {', '.join(loaded)}, expected train or one of "
            f"{', '.join(EVALUATION_NAMES)}"
        )
    chosen, ignored = choose_splits({split: names[0] for split, names in found.items()})
    splits: dict[str, Split] = {}
    parts: dict[str, list[Part]] = {}
    content = hashlib.sha256()
    for split, name in chosen.items():
        data = loaded[name]
        splits[split], columns = _open_split(data, f"{where}, {name}", label_key)
        parts[split] = [Part(f"{where}, {name}", splits[split].labels, columns.class_names)]
        # `datasets` documents the fingerprint as the state of a data set.
        content.update(f"{split}:{len(data)}:{data._fingerprint}\n".encode())  # noqa: SLF001
    unified = unify(parts)
    splits = {
        split: relabelled(of_split, unified.labels[split][0]) for split, of_split in splits.items()
    }
    left_out = [
        LeftOut(
            f"a further evaluation split of {len(loaded[name]):,} images",
            (name,),
            "Choose one with --val-source",
        )
        for name in (found[split][0] for split in ignored)
    ]
    left_out += [
        LeftOut(f"a split of {len(loaded[name]):,} images that is no train", (name,))
        for name in others
    ]
    identity = {"kind": "hf", "path": where, "content": content.hexdigest()}
    return Source(splits, unified.class_names, identity, left_out=left_out, notes=unified.notes)


def _load(name: str, where: str) -> Mapping[str, Any]:
    """Return the splits of a data set by name."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"SOURCE is {where}, which Hugging Face's library reads. Run: pip install "
            "'kdcache[hf]', or download its parquet files and pack their folder"
        ) from error
    if not logger.isEnabledFor(logging.INFO):
        datasets.disable_progress_bars()
    try:
        if is_saved_by_datasets(Path(name)):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(*_name_and_config(name))
    except Exception as error:  # the network, the hub and every file format raise their own
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DatasetError(
            f"{where} cannot be loaded: {reason}. Check the name, or, without a network, download "
            "its parquet files elsewhere and pack their folder"
        ) from error
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _name_and_config(name: str) -> tuple[str, ...]:
    """Return the arguments of `load_dataset`: ORG/NAME or a folder, and CONFIG if it is given."""
    parts = name.split("/")
    if Path(name).exists() or len(parts) < 3:  # noqa: PLR2004  (org, name, config)
        return (name,)
    return ("/".join(parts[:2]), "/".join(parts[2:]))


def _open_split(data: Any, title: str, label_key: str | None) -> tuple[HuggingFaceSplit, Columns]:
    import datasets

    columns = choose_columns(title, data.features.arrow_schema, label_key)
    table = data.select_columns([columns.label]).with_format("arrow")[:]
    labels = validate_labels(title, table[columns.label])
    if len(labels) == 0:
        raise DatasetError(f"{title} holds no rows, expected images")
    images = data.select_columns([columns.image])
    if isinstance(data.features[columns.image], datasets.Image):
        images = images.cast_column(columns.image, datasets.Image(decode=False))
    return HuggingFaceSplit(images, columns.image, labels, title), columns


KIND = SourceKind(
    "hf:ORG/NAME",
    lambda given: given.text.startswith(PREFIX) or is_saved_by_datasets(given.path),
    lambda given, label_key: hugging_face(given.text, label_key),
    has_label_key=True,
)
