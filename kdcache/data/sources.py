"""The sources that `kdcache pack` knows, by what the user writes."""

from __future__ import annotations

from pathlib import Path

from kdcache.data.digits import digits
from kdcache.data.image_folder import image_folder
from kdcache.data.parquet import parquet
from kdcache.data.source import Source
from kdcache.errors import ConfigError


def open_source(source: str) -> Source:
    """Open `digits`, an ImageFolder or image parquet.

    Raises:
        ConfigError: if there is no such source.
        DatasetError: if it holds no usable images.
    """
    if source == "digits":
        return digits()
    path = Path(source)
    if not path.exists():
        raise ConfigError(
            f"SOURCE is {source}, expected `digits`, a folder of images or image parquet. "
            f"{path.resolve()} does not exist"
        )
    if path.is_file() or any(path.rglob("*.parquet")):
        return parquet(path)
    return image_folder(path)
