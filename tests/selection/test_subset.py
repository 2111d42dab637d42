"""Subset files: the format, what is refused, and that nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import pickle
import shlex
from pathlib import Path

import numpy as np
import pytest

from kdcache.commands import parse
from kdcache.errors import CacheCorruptError, ConfigError
from kdcache.seals import write_sealed_npz
from kdcache.selection.subset import Subset


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_a_loaded_subset_equals_the_saved_one(tmp_path):
    subset = Subset(ids(0, 3, 2**40), {"method": "medium", "keep": 0.7, "nested": {"ü": [1, None]}})
    subset.save(tmp_path / "folder" / "s.npz")
    found = Subset.load(tmp_path / "folder" / "s.npz")
    assert found.sample_ids.tolist() == [0, 3, 2**40]
    assert found.sample_ids.dtype == np.int64
    assert found.provenance == subset.provenance
    assert len(found) == 3


def test_a_subset_file_is_an_npz_of_ids_and_a_json_string(tmp_path):
    Subset(ids(1, 2), {"method": "easy"}).save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert sorted(file) == ["provenance", "sample_ids"]
        assert (file["sample_ids"].dtype, file["sample_ids"].tolist()) == (np.int64, [1, 2])
        assert json.loads(str(file["provenance"])) == {"method": "easy"}


def test_the_path_is_used_unchanged_and_may_be_a_string(tmp_path):
    Subset(ids(4)).save(str(tmp_path / "without-suffix"))
    assert [file.name for file in tmp_path.iterdir()] == ["without-suffix"]
    assert Subset.load(str(tmp_path / "without-suffix")).provenance == {}


def test_equal_subsets_are_written_as_equal_bytes(tmp_path):
    for name in "ab":
        Subset(ids(1, 5), {"seed": 0}).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_values_of_numpy_in_the_provenance_become_json(tmp_path):
    given = {"keep": np.float64(0.5), "seed": np.int64(3), "averaged_with": np.array([1, 2])}
    Subset(ids(1), given).save(tmp_path / "s.npz")
    found = Subset.load(tmp_path / "s.npz").provenance
    assert found == {"keep": 0.5, "seed": 3, "averaged_with": [1, 2]}


def test_a_list_is_no_array_of_ids():
    with pytest.raises(ConfigError, match=r"sample_ids are list, expected an array"):
        Subset([1, 2])


def test_a_failed_save_keeps_the_existing_file(tmp_path):
    Subset(ids(1)).save(tmp_path / "s.npz")
    with pytest.raises(ConfigError, match="of type object, expected JSON content"):
        Subset(ids(2), {"keep": object()}).save(tmp_path / "s.npz")
    assert Subset.load(tmp_path / "s.npz").sample_ids.tolist() == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["s.npz"]


@pytest.mark.parametrize(
    "values",
    [ids(3, 1), ids(0, 1, 1, 2), ids(-1, 0, 1), ids(0, 2, 1)],
    ids=["unsorted", "twice", "negative", "unsorted at the end"],
)
def test_ids_that_are_not_sorted_and_unique_are_refused(values):
    with pytest.raises(ValueError, match="not sorted and unique from 0"):
        Subset(values)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([1, 2], dtype=np.int32), r"int32 of shape \(2,\)"),
        (np.array([1.0, 2.0]), r"float64 of shape \(2,\)"),
        (ids(1, 2).reshape(1, 2), r"int64 of shape \(1, 2\)"),
        (ids(), r"int64 of shape \(0,\)"),
    ],
    ids=["int32", "float", "two rows", "none"],
)
def test_arrays_of_another_dtype_or_shape_are_refused(values, found):
    with pytest.raises(ValueError, match=found):
        Subset(values)


def test_the_error_of_a_missing_file_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.npz"):
        Subset.load(tmp_path / "gone.npz")


def savez(path, **arrays):
    """Write a sealed npz file."""
    write_sealed_npz(path, arrays)


def test_a_pickle_in_a_subset_file_is_refused_and_never_executed(tmp_path):
    bomb = Bomb(tmp_path / "executed")
    objects = np.array([bomb], dtype=object)
    savez(tmp_path / "ids.npz", sample_ids=objects, provenance="{}")
    savez(tmp_path / "provenance.npz", sample_ids=ids(1), provenance=objects)
    (tmp_path / "whole.npz").write_bytes(pickle.dumps(bomb))
    for name in ("ids", "provenance", "whole"):
        with pytest.raises(CacheCorruptError, match=rf"{name}\.npz is not a subset file"):
            Subset.load(tmp_path / f"{name}.npz")
    assert not bomb.trace.exists()
    pickle.loads(pickle.dumps(bomb))  # noqa: S301  (to show that it would have been seen)
    assert bomb.trace.exists()


def test_other_files_are_refused(tmp_path):
    Subset(ids(*range(100))).save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    contents = {
        "cut.npz": whole[: len(whole) // 2],
        "empty.npz": b"",
        "text.npz": b"1 2 3\n",
        "flipped.npz": whole[:300] + bytes([whole[300] ^ 1]) + whole[301:],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "array.npy", ids(1, 2))
    savez(tmp_path / "no-ids.npz", provenance="{}")
    savez(tmp_path / "no-provenance.npz", sample_ids=ids(1, 2))
    savez(tmp_path / "no-json.npz", sample_ids=ids(1, 2), provenance="{")
    savez(tmp_path / "unsorted.npz", sample_ids=ids(2, 1), provenance="{}")
    for path in sorted(tmp_path.iterdir()):
        if path.name != "whole.npz":
            with pytest.raises(CacheCorruptError, match=rf"{path.name} is not a subset file"):
                Subset.load(path)


def test_a_subset_without_a_seal_is_refused_with_the_command_that_makes_it_again(tmp_path):
    path = tmp_path / "w" / "subsets" / "mine.npz"
    about = {"method": "beta", "keep": 0.3, "seed": 4, "score": "el2n", "balance": "proportional"}
    Subset(ids(1, 2), about).save(path)
    with np.load(path) as arrays:
        np.savez(path, **arrays)
    with pytest.raises(CacheCorruptError, match="has no seal: an earlier version") as error:
        Subset.load(path)
    words = shlex.split(error.value.in_shell().partition("Run: kdcache ")[2])
    options = parse(words).options
    assert {name: getattr(options, name) for name in about} == about
    assert (Path(options.out), options.overwrite, options.workspace) == (path, True, tmp_path / "w")
