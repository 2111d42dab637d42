"""Scores from files: by sample id and by name, and what is no score at all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.selection.score_files import read_scores, write_scores

DATA = "d" * 64
NAMES = ["/images/train/a/0.png", "/images/train/a/1.png", "/images/train/b/0.png"]


def no_names() -> list[str]:
    raise AssertionError("names were asked for")


def read(path: Path, num_samples: int = 3, names=no_names) -> np.ndarray:
    return read_scores(path, num_samples, data_fingerprint=DATA, sample_names=names)


def csv(folder: Path, text: str) -> Path:
    (folder / "s.csv").write_text(text)
    return folder / "s.csv"


def npy(folder: Path, values: object) -> Path:
    np.save(folder / "s.npy", values)
    return folder / "s.npy"


def test_an_array_is_read_by_sample_id(tmp_path):
    found = read(npy(tmp_path, np.array([0.5, -1.0, 2.0])))
    assert found.tolist() == [0.5, -1.0, 2.0]


def test_a_table_is_read_by_sample_id_in_any_order(tmp_path):
    path = csv(tmp_path, "score,label,sample_id\n0.25,cat,2\n1e-3,dog,0\n-4,cat,1\n")
    assert read(path).tolist() == [0.001, -4.0, 0.25]
    pq.write_table(pa.table({"sample_id": [1, 0, 2], "score": [7, 8, 9]}), tmp_path / "s.parquet")
    assert read(tmp_path / "s.parquet").tolist() == [8, 7, 9]


@pytest.mark.parametrize(
    "names",
    [
        ["b/0.png", "a/1.png", "a/0.png"],
        ["train/b/0.png", "1.png", "a/0.png"],
        ["/images/train/b/0.png", "/images/train/a/1.png", "/images/train/a/0.png"],
    ],
    ids=["folder", "mixed", "absolute"],
)
def test_a_table_is_read_by_the_last_parts_of_file_names(tmp_path, names):
    rows = "".join(f"{name},{score}\n" for name, score in zip(names, (3, 2, 1), strict=True))
    found = read(csv(tmp_path, f"file,score\n{rows}"), names=lambda: NAMES)
    assert found.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0.png", r"a score of 0\.png, .* of more than one"),
        ("c/0.png", r"a score of c/0\.png, which is not a training image.*/images/train/a/0\.png"),
        ("/other/images/train/a/0.png", "which is not a training image"),
        ("png", "a score of png, which is not a training image"),
    ],
)
def test_a_name_that_does_not_match_exactly_one_sample_is_refused(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        read(csv(tmp_path, f"file,score\n{name},1\n"), names=lambda: NAMES)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0,1\n1,1\n", r"0 scores of sample 2 \(1 such samples\)"),
        ("0,1\n1,1\n2,1\n1,5\n", r"2 scores of sample 1 \(1 such"),
        ("0,1\n1,1\n2,1\n3,1\n", r"a score of sample 3, expected samples 0 to 2: .* other data"),
        ("0,1\n-1,1\n2,1\n", "a score of sample -1"),
        ("0,1\nx,1\n2,1\n", "sample_id in .* is string, expected numbers"),
        ("0,1\n1.5,1\n2,1\n", "sample_id in .* is float64, expected integers"),
        ("0,hard\n1,easy\n2,hard\n", "score in .* is string, expected numbers"),
    ],
    ids=["missing", "twice", "beyond", "negative", "text id", "fraction", "text score"],
)
def test_a_table_without_exactly_one_score_per_sample_is_refused(tmp_path, rows, message):
    with pytest.raises(ConfigError, match=message):
        read(csv(tmp_path, f"sample_id,score\n{rows}"))


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("sample_id,loss", "sample_id, loss"),
        ("id,score", "id, score"),
        ("0,1.5", "0, 1.5"),
    ],
)
def test_the_error_of_missing_columns_lists_those_found(tmp_path, header, columns):
    row = ",".join("1" for _ in header.split(","))
    with pytest.raises(ConfigError, match=f"has the columns {columns}, expected `score`"):
        read(csv(tmp_path, f"{header}\n{row}\n"))


def test_a_missing_score_is_read_as_nan(tmp_path):
    found = read(csv(tmp_path, "sample_id,score\n0,1\n1,\n2,nan\n"))
    np.testing.assert_array_equal(found, [1, np.nan, np.nan])


@pytest.mark.parametrize(
    ("kind", "native"),
    [
        *(("<f2", np.float32), (">f2", np.float32), (">f4", np.float32), (">f8", np.float64)),
        *((">i2", np.int64), ("u1", np.int64), (">u4", np.int64), (">u8", np.uint64)),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_numbers_of_any_dtype_are_read_in_native_byte_order(tmp_path, kind, native, suffix):
    values = np.array([200, 7, 100] if kind[1] == "u" or kind == "u1" else [0.5, -7, 100])
    stored = values.astype(kind)
    if suffix == ".npy":
        found = read(npy(tmp_path, stored))
    else:
        table = pa.table({"sample_id": pa.array([0, 1, 2], pa.uint64()), "score": swapped(stored)})
        pq.write_table(table, tmp_path / "s.parquet")
        found = read(tmp_path / "s.parquet")
    assert found.dtype == native
    assert found.tolist() == stored.tolist()


def swapped(values: np.ndarray) -> np.ndarray:
    """Return an array in the byte order of this machine, which is all that Arrow takes."""
    return values.astype(values.dtype.newbyteorder("="))


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8", "i1", "f2", "f4"])
@pytest.mark.parametrize("step", [1, -1])
def test_sorted_values_are_refused_whatever_their_dtype(tmp_path, kind, step):
    ranks = 2 * (np.arange(20) // 2)[::step]  # with ties
    with pytest.raises(ConfigError, match=f"are sorted \\({ranks[0]} to {ranks[-1]}\\)"):
        read(npy(tmp_path, ranks.astype(kind)), 20)
    ranks[[3, 12]] = ranks[[12, 3]]
    assert read(npy(tmp_path, ranks.astype(kind)), 20).tolist() == ranks.tolist()


def test_unsigned_numbers_of_64_bits_keep_their_order(tmp_path):
    values = np.array([2**64 - 1, 2**63, 2**64 - 2], np.uint64)
    assert read(npy(tmp_path, values)).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(4), r"shape \(4,\), expected \(3,\)"),
        (np.zeros((3, 1)), r"shape \(3, 1\)"),
        (np.array([True, False, True]), "holds bool"),
        (np.array(["a", "b", "c"]), "holds <U1"),
        (np.array([1j, 2, 3]), "holds complex128"),
        (
            np.array([1, 2, 0], np.longdouble),
            r"holds float\d+, expected numbers of at most 64 bits",
        ),
    ],
    ids=["longer", "column", "mask", "text", "complex", "wide"],
)
def test_an_array_without_one_number_per_sample_is_refused(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        read(npy(tmp_path, values))


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    np.save(tmp_path / "s.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"s\.npy is not an array of numbers"):
        read(tmp_path / "s.npy", 1)


def test_other_file_formats_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"scores=.*s\.txt: expected .*\.npy or NAME\.csv"):
        read(tmp_path / "s.txt")
    (tmp_path / "s.parquet").write_text("no parquet")
    with pytest.raises(ConfigError, match=r"s\.parquet is not readable as parquet"):
        read(tmp_path / "s.parquet")


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
@settings(max_examples=20, deadline=None)
@given(scores=arrays.arrays(np.float32, 9, elements={"allow_nan": False, "allow_infinity": False}))
def test_exported_scores_come_back_in_the_same_order(tmp_path_factory, suffix, scores):
    path = tmp_path_factory.mktemp("scores") / f"s{suffix}"
    write_scores(
        path, scores, np.arange(9) % 2, np.array([1, 4]), data_fingerprint=DATA, names=None
    )
    found = read(path, 9)
    if suffix != ".csv":
        assert found.dtype == np.float32
    assert np.array_equal(found.astype(np.float32), scores)
    assert np.argsort(found, kind="stable").tolist() == np.argsort(scores, kind="stable").tolist()


def test_an_export_marks_the_kept_samples(tmp_path):
    scores = np.array([3, 1, 2], np.float32)
    labels, kept = np.array([0, 1, 0]), np.array([0, 2])
    write_scores(tmp_path / "s.csv", scores, labels, kept, data_fingerprint=DATA, names=None)
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines == [
        '"sample_id","label","score","kept"',
        "0,0,3,true",
        "1,1,1,false",
        "2,0,2,true",
    ]
    with pytest.raises(ConfigError, match=r"export=.*s\.json"):
        write_scores(tmp_path / "s.json", scores, labels, kept, data_fingerprint=DATA, names=None)


@pytest.mark.parametrize(
    "metadata",
    [b"[1, 2]", b'"words"', b"{}", b"no json", b"\xff\xfe", b"null"],
    ids=lambda metadata: metadata.decode("latin-1"),
)
def test_the_error_of_malformed_metadata_shows_it(tmp_path, metadata):
    table = pa.table({"sample_id": [0, 1, 2], "score": [2.0, 1.0, 3.0]})
    pq.write_table(table.replace_schema_metadata({"kdcache": metadata}), tmp_path / "s.parquet")
    shown = re.escape(repr(metadata))
    with pytest.raises(ConfigError, match=rf"metadata kdcache of .*s\.parquet is {shown}"):
        read(tmp_path / "s.parquet")


def test_metadata_of_other_programs_is_ignored(tmp_path):
    table = pa.table({"sample_id": [0, 1, 2], "score": [2.0, 1.0, 3.0]})
    pq.write_table(table.replace_schema_metadata({"pandas": b"[]"}), tmp_path / "s.parquet")
    assert read(tmp_path / "s.parquet").tolist() == [2, 1, 3]


def test_scores_of_other_data_are_refused(tmp_path):
    path = tmp_path / "s.parquet"
    write_scores(
        path, np.zeros(3), np.zeros(3, int), np.array([0]), data_fingerprint="e" * 64, names=None
    )
    with pytest.raises(CacheMismatchError, match=f"data_fingerprint is {'e' * 12}, .*{'d' * 12}"):
        read(path)
