"""Small image files and Parquet files for the tests of sources."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(value):
    """Return a PNG of one grey."""
    file = io.BytesIO()
    Image.new("L", (4, 3), value).save(file, "PNG")
    return file.getvalue()


def value_of(content):
    """Return the grey of a PNG of one grey."""
    return Image.open(io.BytesIO(content)).getpixel((0, 0))


def write_pngs(folder, *values):
    """Write one PNG per grey value."""
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        (folder / f"{value:03}.png").write_bytes(png(value))


def contents(split):
    """Return grey value and label of each image of a split, in its order."""
    return [(value_of(split.read(i)), int(label)) for i, label in enumerate(split.labels)]


def write_parquet(path, rows, *, names=None, row_group_size=2, label_type=None, metadata=None):
    """Write (grey, label) rows as Hugging Face's datasets library does."""
    images = [{"bytes": png(value), "path": f"{value}.png"} for value, _ in rows]
    image = pa.array(images, type=pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    label = pa.array([label for _, label in rows], type=label_type or pa.int64())
    table = pa.table({"image": image, "label": label})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)
    return path
