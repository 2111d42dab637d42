"""Read and write the names that a beton's images have in their source: paths or keys.

`SPLIT.names.parquet` beside a beton has the columns `sample_id` and `file`, a row per position. It
is apart from the manifest because loading pyarrow takes longer than opening a beton.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.data.beton_manifest import BetonManifest, names_path, pack_again
from kdcache.errors import DatasetError
from kdcache.files import replace_atomically, sha256_of


def save_names(beton: Path, sample_ids: npt.NDArray[np.int64], names: list[str]) -> None:
    r"""Write the names of a beton's images.

    Args:
        beton: path of the beton.
        sample_ids: (N,).
        names: (N,) name of each image. Bytes that are not UTF-8 become escapes such as \udcff.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    table = pa.table({"sample_id": pa.array(sample_ids), "file": pa.array(texts, pa.string())})
    with replace_atomically(names_path(beton)) as partial:
        pq.write_table(table, partial, compression="zstd")


def load_names(beton: Path, manifest: BetonManifest) -> list[str]:
    """Return the names of a beton's images, by position.

    Raises:
        DatasetError: if their file is missing, or differs from the manifest.
    """
    import pyarrow.parquet as pq

    path = names_path(beton)
    if not path.exists() or sha256_of(path) != manifest.names_digest:
        state = "differs from its digest in the manifest" if path.exists() else "is missing"
        raise DatasetError(
            f"{path} {state}, expected the names of {beton.name}'s images. "
            f"{pack_again(beton, manifest)}"
        )
    names: list[str] = pq.read_table(path, columns=["file"])["file"].to_pylist()
    return names
