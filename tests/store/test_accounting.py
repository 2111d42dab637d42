"""Bytes of a store: against a real one, and against published layouts."""

from __future__ import annotations

import pytest
import zarr

from kdcache.store.codecs.dense import Dense
from kdcache.store.codecs.topk import TopK
from kdcache.store.format.accounting import METADATA_BYTES, rows_bytes, store_bytes
from kdcache.store.format.shard_file import OVERHEAD_BYTES
from tests.store.codecs import drawn_logits, encoded, make_codec

GIB = 2**30


@pytest.mark.parametrize(
    ("samples", "epochs", "k", "gib"),
    # TinyViT: a seed of 4 bytes, and k indices and probabilities of 2 bytes each; published as
    # 16 GB and 481 GB.
    [(1_281_167, 300, 10, 15.75), (14_197_122, 90, 100, 480.76)],
)
def test_the_published_sizes_of_tinyvit_are_reproduced(samples, epochs, k, gib):
    assert rows_bytes(samples, epochs, 4 + k * (2 + 2)) / GIB == pytest.approx(gib, abs=0.005)


@pytest.mark.parametrize(
    ("crops", "number_bytes", "gigabytes"),
    # FKD on ImageNet: a box of 16 bytes, a flip, and 5 indices and probabilities.
    [(200, 4, 14.6), (500, 4, 36.5), (200, 2, 7.4), (500, 2, 18.6)],
)
def test_the_published_sizes_of_fkd_are_reproduced(crops, number_bytes, gigabytes):
    row_bytes = {4: 16 + 1, 2: 8 + 1}[number_bytes] + 5 * 2 * number_bytes
    assert rows_bytes(1_281_167, crops, row_bytes) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_the_last_shard_of_a_view_is_filled_up():
    assert rows_bytes(9, 2, 10, shard_rows=4) == 2 * 12 * 10
    assert rows_bytes(8, 2, 10, shard_rows=4) == 2 * 8 * 10


@pytest.mark.parametrize("kind", ["dense", "topk", "lowrank"])
def test_rows_on_disk_take_the_bytes_that_were_predicted(kind, tmp_path):
    codec, shard_rows = make_codec(kind, 50), 64
    rows = encoded(codec, drawn_logits(150, 50))
    array = zarr.create_array(
        tmp_path / "rows",
        data=rows,
        chunks=(shard_rows, codec.row_width),
        compressors=[zarr.codecs.Crc32cCodec()],
    )
    assert array.nchunks == 3
    chunks = [file for file in (tmp_path / "rows" / "c").rglob("*") if file.is_file()]
    found = sum(file.stat().st_size for file in chunks)
    assert found == rows_bytes(150, 1, codec.row_bytes, shard_rows=shard_rows) + 3 * 4


def test_a_store_takes_the_bytes_that_were_predicted(tiny_store):
    manifest = tiny_store.manifest
    predicted = store_bytes(
        tiny_store.codec_of(1),
        tiny_store.codec_of(0),
        num_samples=manifest.samples,
        num_rows=len(tiny_store.sample_ids),
        num_views=tiny_store.num_views,
        shard_rows=manifest.shard_rows,
    )
    chunks = [file for file in tiny_store.path.rglob("*") if "c" in file.parts and file.is_file()]
    arrays = {file.parts[: file.parts.index("c")] for file in chunks}
    found = sum(file.stat().st_size for file in chunks)
    # The probe of the pixels, the same for every store, and what surrounds arrays in one shard.
    found -= tiny_store.pixel_probe.nbytes + 3 * OVERHEAD_BYTES
    assert predicted == found + len(arrays) * METADATA_BYTES


def test_a_large_store_is_its_rows():
    codec, clean = TopK(1000, 10), Dense(1000)
    predicted = store_bytes(
        codec, clean, num_samples=1_281_167, num_rows=640_000, num_views=50, shard_rows=4096
    )
    rows = 1_281_167 * 2000 + 640_000 * 50 * 50
    assert predicted == pytest.approx(rows, rel=0.03)
    assert predicted > rows
