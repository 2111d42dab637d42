"""The faults of FFCV (1.0.2), by number, each with the test that it is contained.

Where it is cheap a test first shows what FFCV does by itself (`bare`, see `bare_ffcv.py`). The
numbers are those of FFCV's known problems as this project lists them; `ELSEWHERE` and
`DOES_NOT_APPLY` hold the others, so that these three are the whole table.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from numba.core import event

from kdcache.cores import available_cores
from kdcache.data.beton import open_beton
from kdcache.data.beton_manifest import manifest_path
from kdcache.data.digests import digests_path
from kdcache.data.policy import Policy
from kdcache.data.views import Views
from kdcache.errors import ConfigError, DatasetError
from kdcache.reader.batches import PixelReader, clamp_workers
from tests.conftest import ROOT
from tests.reader.reference import batches_of, read_all, reader_threads, stored_bytes

ELSEWHERE = {
    "F2": (
        "the writer waits for ever when an image fails or a worker dies",
        "data/test_pack_bad_images.py::test_a_truncated_image_stops_the_pack_and_leaves_the_one_before",
        "data/test_pack_bad_images.py::test_a_worker_that_is_killed_stops_the_pack",
    ),
    "F3": (
        "an unfinished file opens",
        "data/test_beton.py::test_an_unfinished_or_foreign_header_is_refused",
        "data/test_beton.py::test_a_truncated_beton_is_refused",
    ),
    "F7": (
        "batches do not say which samples they hold",
        "reader/test_batches.py::test_pixels_do_not_depend_on_the_batch_they_are_in",
        "loader/test_distill.py::test_every_row_is_the_teachers_answer_to_the_pixels_beside_it",
    ),
    "F8": (
        "float16 rows do not compile; ours do not pass the pipeline",
        "loader/test_staging.py::test_rows_stay_encoded_until_they_are_used",
    ),
    "F13": (
        "the interface of orders differs between versions; ours is a function",
        "reader/test_order.py::test_an_epoch_order_is_a_permutation_of_the_subset",
    ),
    "F14": (
        "ranks get duplicates, so that their shares are equal",
        "reader/test_order.py::test_ranks_part_the_order_into_nearly_equal_shares",
    ),
    "F19": (
        "pruning reads as many pages; a subset can be packed",
        "data/test_repack.py::test_a_loader_reads_the_same_from_it_as_from_the_full_beton",
    ),
    "F26": (
        "pixels differ from torchvision's, so teacher and student share the decoder",
        "reader/test_decode.py::test_raw_images_are_cut_and_resized_as_pillow_does",
        "loader/test_distill.py::test_teacher_and_student_see_the_same_changed_pixels",
    ),
    "F27": (
        "torchvision's photometric changes are drawn once for a batch",
        "reader/test_photometric_kernels.py::test_changed_views_are_the_plain_views_changed",
    ),
    "F29": (
        "an image larger than a page",
        "data/test_beton_writer.py::test_an_image_larger_than_a_page_is_refused",
        "data/test_beton_writer.py::test_no_image_lies_across_two_pages",
    ),
    "F34": (
        "two runs write other bytes",
        "data/test_pack.py::test_the_same_images_give_the_same_bytes_with_any_number_of_workers",
    ),
    "F35": (
        "one view for each decoding",
        "reader/test_batches.py::test_views_decoded_together_are_those_decoded_alone",
    ),
}
"""Fault -> what it is, and the tests under `tests/` that it is contained."""

DOES_NOT_APPLY = {
    "F9": "a pipeline with a compiled operation after another kind: ours is one operation",
    "F18": "the process cache: files are mapped always, the system's cache serves all ranks",
    "F21": "a fork beside FFCV's threads: no process is forked, packing starts fresh ones",
    "F23": "building FFCV: README names the Debian packages, make installs them",
    "F24": "distutils is gone from Python 3.12: setuptools is a dependency, which brings it",
    "F25": "numpy 2: nothing breaks",
    "F30": "pages in Python dicts: a reader maps the file, and keeps two arrays of places",
    "F31": "no append: a data set is packed whole, a subset is sample ids or its own beton",
    "F32": "no remote files: betons are local",
}


@pytest.fixture(scope="module")
def bare(tiny_beton, damaged_beton):
    """What FFCV does by itself."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.reader.bare_ffcv", str(tiny_beton), str(damaged_beton)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    return json.loads(process.stdout)


def test_the_table_is_whole():
    here = re.findall(r"^def test_f(\d+)_", Path(__file__).read_text(), re.MULTILINE)
    numbers = [*{f"F{number}" for number in here}, *ELSEWHERE, *DOES_NOT_APPLY]
    assert sorted(numbers) == sorted(f"F{number}" for number in range(1, 37))


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_a_test_that_is_elsewhere_is_there(fault):
    for name in ELSEWHERE[fault][1:]:
        file, _, function = name.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


# --- F1: an exception in the pipeline is a silent hang ---


def copy_into(folder, beton):
    """Copy a beton, its manifest and its digests; return the copy's path."""
    shutil.copy(manifest_path(beton), folder)
    shutil.copy(digests_path(beton), folder)
    return Path(shutil.copy(beton, folder))


@pytest.mark.timeout(60)
def test_f1_an_error_in_the_thread_arrives_in_the_loop(tiny_beton, bare):
    assert bare["F1"]["waits for a dead thread"]
    views = Views(Policy.parse("pad-crop(4, flip)"), 5, 32)
    reader = PixelReader(tiny_beton, views, batch_size=8, num_workers=2)
    reader._decoder._num_workers = "two"  # noqa: SLF001  (the reader's thread raises)
    with pytest.raises(TypeError, match="unsupported operand"):
        next(reader.read([np.arange(8)], 1))
    assert reader_threads() == []


# --- F4: a damaged JPEG is a black or stale image, without an error ---


def overwritten(content, offset, values):
    """Return a copy of a file with some bytes replaced."""
    changed = content.copy()
    changed[offset : offset + len(values)] = list(values)
    return changed


def find(content, marker):
    """Return where a JPEG's segment begins."""
    return content.tobytes().index(bytes([0xFF, marker]))


DAMAGE = {
    1: ("no second half", lambda file: overwritten(file, len(file) // 2, bytes(len(file) // 2))),
    3: ("zeros", lambda file: overwritten(file, 0, bytes(len(file)))),
    8: ("no tables", lambda file: overwritten(file, 200, bytes(len(file) - 200))),
    11: (
        "scan header beyond the end",
        lambda file: overwritten(file, find(file, 0xDA) + 2, b"\xff\xff"),
    ),
    15: ("a taller image", lambda file: overwritten(file, find(file, 0xC0) + 5, b"\xff\xff")),
    17: (
        "a narrower image",
        lambda file: overwritten(file, find(file, 0xC0) + 8, [file[find(file, 0xC0) + 8] - 1]),
    ),
    18: (
        "one row less",
        lambda file: overwritten(file, find(file, 0xC0) + 6, [file[find(file, 0xC0) + 6] - 1]),
    ),
    20: ("another start", lambda file: overwritten(file, 0, b"GIF")),
}
"""Position -> what is wrong with its JPEG, and how it is made so."""


@pytest.fixture(scope="module")
def damaged_beton(photo_beton, tmp_path_factory):
    """A copy of `photo_beton` with some of its JPEGs damaged."""
    path = copy_into(tmp_path_factory.mktemp("damaged"), photo_beton)
    beton = open_beton(path)
    with path.open("r+b") as file:
        for position, (_, damage) in DAMAGE.items():
            file.seek(int(beton.pointers[position]))
            file.write(damage(stored_bytes(beton, position)).tobytes())
    return path


@pytest.fixture(scope="module")
def damaged_reader(damaged_beton):
    """A reader of it."""
    views = Views(Policy.parse("rrc"), 5, 12)
    return PixelReader(damaged_beton, views, batch_size=8, num_workers=2)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("position", DAMAGE, ids=lambda position: DAMAGE[position][0])
def test_f4_a_damaged_jpeg_is_an_error_that_names_its_sample(damaged_reader, position, bare):
    assert bare["F4"]["images"] == len(damaged_reader.beton)
    message = rf"sample {position} \(and 0 more of its batch\) in .*train\.beton cannot be decoded"
    batches = damaged_reader.read([np.array([0, position, 23])], 0)
    with pytest.raises(DatasetError, match=message):
        next(batches)
    assert reader_threads() == []


def test_f4_the_first_of_several_damaged_jpegs_is_named(damaged_reader):
    batches = damaged_reader.read([np.array([0, 20, 3, 5, 11])], 0)
    with pytest.raises(DatasetError, match=r"sample 20 \(and 2 more of its batch\)"):
        next(batches)


def test_f4_batches_before_a_damaged_jpeg_arrive(damaged_reader):
    batches = damaged_reader.read(batches_of([0, 2, 4, 5, 6, 8, 9, 10], 2), 0)
    assert next(batches).sample_ids.tolist() == [0, 2]
    assert next(batches).sample_ids.tolist() == [4, 5]
    with pytest.raises(DatasetError, match="sample 8 "):
        next(batches)


def test_f4_whole_jpegs_are_read_beside_damaged_ones(damaged_reader, photo_reader):
    whole = np.setdiff1d(np.arange(24), list(DAMAGE))
    for view in (0, 1):
        images = read_all(damaged_reader, view, batches_of(whole, 8))[0]
        assert np.array_equal(images, read_all(photo_reader, view)[0][whole])


# --- F5: batches are views of buffers that are filled again ---


def test_f5_a_held_batch_keeps_its_pixels(crop_reader, bare):
    assert bare["F5"]["overwritten"] > bare["F5"]["batches"] / 2
    batches = batches_of(np.arange(72), 6)
    held = [(batch.images, batch.images.clone()) for batch in crop_reader.read(batches, 1)]
    assert all(torch.equal(images, clone) for images, clone in held)


# --- F6: the seed covers the order alone ---


@pytest.mark.parametrize(("num_workers", "batch_size"), [(1, 16), (1, 5)])
@pytest.mark.parametrize("name", ["crop_reader", "photo_reader"])
def test_f6_pixels_depend_on_the_seed_alone(
    request, make_reader, name, num_workers, batch_size, bare
):
    assert bare["F6"] == {"same order": True, "same crops": False}
    reader = request.getfixturevalue(name)
    other = make_reader(
        reader.beton.path,
        str(reader.views.policy),
        reader.views.image_size,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    for view in (0, 3):
        for part, expected in zip(read_all(other, view), read_all(reader, view), strict=True):
            assert np.array_equal(part, expected)


# --- F10: positions are used as they are: negative ones wrap, others read garbage ---


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([-1, 3], r"from -1 to 3, expected numbers in \[0, 72\)"),
        ([3, 72], r"from 3 to 72, expected numbers in \[0, 72\)"),
        ([], r"a batch has 0 samples, expected 1 to 16"),
        (list(range(17)), r"a batch has 17 samples, expected 1 to 16"),
    ],
    ids=["negative", "beyond the end", "empty", "too large"],
)
def test_f10_a_batch_that_cannot_be_read_is_refused_before_any_is(
    crop_reader, batch, message, bare
):
    assert bare["F10"] == {"id of -1": [71, 3], "batches of 15": 0}
    batches = [np.arange(4), np.array(batch, dtype=np.int64)]
    with pytest.raises(DatasetError, match=message):
        next(crop_reader.read(batches, 1))
    assert reader_threads() == []


# --- F11: another subset needs another loader ---


def test_f11_the_subset_may_change_with_each_epoch(crop_reader, bare):
    assert bare["F11"]["samples"] == 72  # and not the 5 that were set
    for subset in ([4, 9, 60], [9], list(range(30, 72))):
        ids = read_all(crop_reader, 1, batches_of(subset, 16))[2]
        assert ids.tolist() == subset


# --- F12: duplicates, and batches of one ---


def test_f12_a_sample_may_come_twice(crop_reader):
    images = read_all(crop_reader, 1, [np.array([3, 3, 8]), np.array([3])])[0]
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[3])


def test_f12_batches_of_one_are_read(crop_reader):
    assert len(read_all(crop_reader, 1, batches_of(range(5), 1))[0]) == 5


# --- F15: the tail is dropped ---


def test_f15_every_sample_comes_once_and_no_tail_is_dropped(crop_reader, bare):
    assert bare["F15"]["samples"] == 64
    count = len(crop_reader.beton)
    assert count % 7 != 0
    batches = list(batches_of(np.arange(count)[::-1], 7))
    read = [batch.sample_ids.tolist() for batch in crop_reader.read(batches, 1)]
    assert [len(ids) for ids in read] == [len(batch) for batch in batches]
    assert sum(read, []) == list(range(count))[::-1]  # noqa: RUF017  (a few lists)


# --- F16: a batch of one loses its axis ---


def test_f16_a_batch_of_one_keeps_its_axis(crop_reader):
    (batch,) = crop_reader.read([np.array([7])], 1)
    assert [len(part.shape) for part in batch] == [4, 1, 1]
    assert [len(part) for part in batch] == [1, 1, 1]


# --- F17: a loop that is left leaves its thread and buffers ---


def test_f17_leaving_the_loop_early_stops_the_thread(crop_reader, bare):
    assert bare["F17"]["threads"] == 5
    for _ in range(30):
        for batch in crop_reader.read(batches_of(np.arange(72), 4), 1):
            assert len(reader_threads()) == 1
            assert len(batch.labels) == 4
            break
        assert reader_threads() == []


def test_f17_dropping_an_iterator_stops_the_thread(crop_reader):
    iterator = crop_reader.read(batches_of(np.arange(72), 4), 1)
    next(iterator)
    assert len(reader_threads()) == 1
    del iterator
    assert reader_threads() == []


# --- F20: more workers than cores are an error, and torch's threads change ---


@pytest.mark.parametrize("wanted", [None, 1, 2, 10_000])
def test_f20_no_more_threads_are_used_than_there_are_cores(wanted):
    cores = min(available_cores(), numba.config.NUMBA_NUM_THREADS)
    assert clamp_workers(wanted) == (cores if wanted is None else min(wanted, cores))


def test_f20_more_workers_than_cores_read_the_same(make_reader, tiny_beton, crop_reader, bare):
    assert "number of threads must be between 1 and" in bare["F20"]["error"]
    reader = make_reader(tiny_beton, "pad-crop(4, flip)", 32, num_workers=10_000)
    assert reader.num_workers <= os.cpu_count()
    assert np.array_equal(read_all(reader, 1)[0], read_all(crop_reader, 1)[0])


def test_f20_torchs_number_of_threads_stays(tiny_beton, crop_reader, bare):
    assert bare["F20"]["torch threads"] == 1  # of 2
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        reader = PixelReader(tiny_beton, crop_reader.views, batch_size=4, num_workers=1)
        assert torch.get_num_threads() == before + 1
        list(reader.read([np.arange(4)], 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


# --- F22: noise on exit ---


USE_AND_EXIT = """
import sys
from numba.core import event
from kdcache.loader.distill import DistillLoader
with event.install_recorder("numba:compile") as compilations:
    loader = DistillLoader(sys.argv[1], None, batch_size=8)
    batches = loader.epoch(0)
    next(batches)
print(len(compilations.buffer))
"""


@pytest.fixture(scope="module")
def used_and_left(tiny_beton, crop_reader):
    """A process that begins an epoch and ends; what it reads with was compiled before."""
    read_all(crop_reader, 1)
    return subprocess.run(
        [sys.executable, "-c", USE_AND_EXIT, str(tiny_beton)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_f22_a_process_that_ends_amid_an_epoch_ends_quietly(used_and_left):
    assert (used_and_left.returncode, used_and_left.stderr) == (0, "")


# --- F28: scratch memory grows with batch times the largest image ---


def test_f28_buffers_beyond_the_memory_budget_are_refused(photo_beton, photo_reader):
    needed = photo_reader.memory_bytes
    usual = {"batch_size": photo_reader.batch_size, "num_workers": 2}
    PixelReader(photo_beton, photo_reader.views, memory_budget_bytes=needed, **usual)
    with pytest.raises(ConfigError, match=f"would take {needed:,} bytes, .* {needed - 1:,};"):
        PixelReader(photo_beton, photo_reader.views, memory_budget_bytes=needed - 1, **usual)
    # Three batches of pixels, and for each thread at least a decoded image.
    largest = photo_reader.beton.sizes.prod(axis=1).max()
    assert needed >= 3 * photo_reader.batch_size * 3 * 12**2 + 3 * largest


def test_f28_scratch_images_are_one_for_each_thread(photo_beton, photo_reader, bare):
    # FFCV: one for each place in each of five batches.
    assert bare["F28"]["scratch bytes"] == 5 * 16 * 3 * 32**2
    large = PixelReader(photo_beton, photo_reader.views, batch_size=24, num_workers=2)
    # The batch of the loop, the one that is delivered, and two that are decoded ahead.
    more = 4 * (24 - photo_reader.batch_size) * 3 * 12**2
    assert large.memory_bytes - photo_reader.memory_bytes == more


# --- F33: what changes with an epoch needs another compilation ---


def test_f33_another_view_subset_or_policy_compiles_nothing(make_reader, tiny_beton, crop_reader):
    read_all(crop_reader, 1)
    read_all(make_reader(tiny_beton, "pad-crop(4, erase=0.5)", 32), 1)
    with event.install_recorder("numba:compile") as compilations:
        seen = [read_all(crop_reader, view)[0] for view in range(4)]
        read_all(crop_reader, 5, [np.arange(7)])
        for policy in ("rrc", "clean", "pad-crop(2, brightness=0.3)"):
            read_all(make_reader(tiny_beton, policy, 24, seed=9), 1)
    assert len(compilations.buffer) == 0
    for one in range(4):
        for other in range(one):
            assert not np.array_equal(seen[one], seen[other])


# --- F36: every process compiles anew ---


def test_f36_a_second_process_compiles_nothing(used_and_left):
    assert used_and_left.stdout == "0\n"
