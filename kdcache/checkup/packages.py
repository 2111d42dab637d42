"""Check the other packages: scikit-learn's digits, zarr arrays, and safetensors files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from kdcache.checkup.finding import Finding, error, ok, reason


def check_packages(_workspace: Path) -> Iterator[Finding]:
    """Try each package; a failure of one does not hide that of another."""
    steps: tuple[tuple[str, str, Callable[[Path], None]], ...] = (
        ("digits", "scikit-learn", _digits),
        ("store", "zarr", _store),
        ("weights", "safetensors", _weights),
    )
    with tempfile.TemporaryDirectory(prefix="kdcache-doctor-") as folder:
        for check, package, operation in steps:
            try:
                operation(Path(folder))
                yield ok(check, f"{package} {version(package)} works")
            except Exception as failure:  # noqa: BLE001  (a broken package raises almost anything)
                remedy = f"pip install --force-reinstall --no-cache-dir {package}"
                yield error(check, f"{package} fails: {reason(failure)}", remedy)


def _digits(_folder: Path) -> None:
    from kdcache.data.digits import digits

    digits().splits["train"].read(0)


def _store(folder: Path) -> None:
    import numpy as np
    import zarr
    from zarr.codecs import Crc32cCodec

    from kdcache.store.format.location import open_zarr_store

    store = open_zarr_store(folder / "store.zarr", read_only=False)
    rows = np.arange(24, dtype=np.float16).reshape(6, 4)
    array = zarr.create_array(
        store, shape=rows.shape, chunks=(2, 4), dtype=rows.dtype, compressors=[Crc32cCodec()]
    )
    array[:] = rows
    found = zarr.open_array(open_zarr_store(folder / "store.zarr", read_only=True), mode="r")[:]
    if not np.array_equal(found, rows):
        raise OSError("the rows read differ from those written")


def _weights(folder: Path) -> None:
    import torch

    from kdcache.models.weights import load_weights, save_weights

    path = folder / "weights.safetensors"
    save_weights(path, {"weight": torch.arange(6.0)}, {"arch": "doctor"})
    if load_weights(path)[0]["weight"].tolist() != [0, 1, 2, 3, 4, 5]:
        raise OSError("the weights read differ from those written")
