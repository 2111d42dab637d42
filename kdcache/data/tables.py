"""Find the image and label columns of an Arrow table, for parquet and Hugging Face data sets.

An image is a struct of `bytes` and `path`, as Hugging Face's datasets store it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.errors import ConfigError, DatasetError

VIEW_POLICY = b"view_policy"
"""Key of the view policy in the metadata of a schema."""


class Columns(NamedTuple):
    """The columns of a table that are read."""

    image: str
    label: str
    class_names: list[str] | None
    """Class names, if the table states them."""
    view_policy: str | None
    """View policy that suits the images, if the table states one."""


def choose_columns(where: Path | str, schema: Any, label_key: str | None) -> Columns:
    """Find the column of images and the one of labels.

    Args:
        where: path or name of the table, for messages.
        schema: pyarrow's, with its metadata.
        label_key: name of the label column; None: `label`.

    Raises:
        ConfigError: if `label_key` is no column of integers.
        DatasetError: if the table has no such columns; names its columns.
    """
    import pyarrow as pa

    names = schema.names
    images = [name for name in names if _is_image(schema.field(name).type)]
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    integers = [name for name in names if pa.types.is_integer(schema.field(name).type)]
    if label_key is not None and label_key not in integers:
        raise ConfigError(
            parameter="label_key",
            value=label_key,
            rule=f"one of the integer columns of {where}: {', '.join(integers) or 'none'}",
        )
    label = label_key or ("label" if "label" in integers else None)
    if image is None or label is None:
        found = ", ".join(f"{n} ({_type_name(schema.field(n).type)})" for n in names)
        problem = "" if image else "no image"
        if label is None:
            problem += (" and " if problem else "") + _label_problem(schema)
        remedy = f". Choose one: --label-key {integers[0]}" if image and integers else ""
        raise DatasetError(
            f"{where} has the columns {found}: {problem}. Expected an image (struct of bytes and "
            f"path; named `image` if there are several) and `label` (integer){remedy}"
        )
    policy = (schema.metadata or {}).get(VIEW_POLICY)
    return Columns(image, label, _class_names(schema, label), policy and policy.decode())


def validate_labels(where: Path | str, column: Any) -> npt.NDArray[np.int64]:
    """Return a column of labels.

    Args:
        where: path or name of the table, for messages.
        column: pyarrow's array of integers.

    Raises:
        DatasetError: if one is missing or below 0.
    """
    import pyarrow.compute as pc

    if column.null_count:
        first = pc.index(column.is_null(), True).as_py()
        raise DatasetError(
            f"{where} has {column.null_count} rows without a label, the first is row {first}, "
            "expected none"
        )
    if len(column) and pc.max(column).as_py() > np.iinfo(np.int64).max:
        raise DatasetError(
            f"{where} has the label {pc.max(column).as_py()}, expected labels up to "
            f"{np.iinfo(np.int64).max}"
        )
    labels: npt.NDArray[np.int64] = column.to_numpy().astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise DatasetError(
            f"{where} has the label {labels.min()}, expected labels from 0. Hidden labels, as of a "
            "competition's test split, cannot be packed"
        )
    return labels


def _type_name(kind: Any) -> str:
    import pyarrow as pa

    return "struct" if pa.types.is_struct(kind) else str(kind)


def _label_problem(schema: Any) -> str:
    """Say why a table has no labels: its column has another type, or there is none."""
    if "label" not in schema.names:
        return "no `label`"
    kind = _type_name(schema.field("label").type)
    return f"the labels are of type {kind}, not integers. Number the classes first"


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    content = kind.field("bytes").type
    return bool(pa.types.is_binary(content) or pa.types.is_large_binary(content))


def _class_names(schema: Any, label: str) -> list[str] | None:
    """Return class names from Hugging Face's feature metadata, or from a `class_names` key.

    The key holds a JSON list, or names separated by commas.
    """
    metadata = schema.metadata or {}
    if b"class_names" in metadata:
        text = metadata[b"class_names"].decode()
        return [str(name) for name in (json.loads(text) if text[:1] == "[" else text.split(","))]
    if b"huggingface" in metadata:
        features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
        names = features.get(label, {}).get("names")
        return None if names is None else [str(name) for name in names]
    return None
