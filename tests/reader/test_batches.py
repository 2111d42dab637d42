from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdcache.data.beton import manifest_path, open_beton
from kdcache.data.views import Policy, Views
from kdcache.errors import ConfigError, DatasetError
from kdcache.reader.batches import PixelReader, clamp_workers, pixels
from tests.reader.reference import read_all, stored_bytes


def batches_of(positions, size):
    """Cut positions into batches."""
    return np.split(np.asarray(positions), range(size, len(positions), size))


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("kdcache-reader")]


def copy_into(folder, beton):
    """Copy a beton and its manifest; return the copy's path."""
    shutil.copy(manifest_path(beton), folder)
    return Path(shutil.copy(beton, folder))


# --- the same pixels, however they are asked for ---


@given(st.data())
@settings(
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_pixels_do_not_depend_on_the_batch_they_are_in(crop_reader, data):
    expected = read_all(crop_reader, 2)[0]
    order = data.draw(st.permutations(range(len(crop_reader.beton))))
    batches = batches_of(order, data.draw(st.integers(1, crop_reader.batch_size)))
    images, labels, sample_ids = read_all(crop_reader, 2, batches)
    assert np.array_equal(images, expected[order])
    assert np.array_equal(sample_ids, crop_reader.beton.sample_ids[order])
    assert np.array_equal(labels, crop_reader.beton.labels[order])


@pytest.mark.parametrize(("num_workers", "batch_size"), [(1, 16), (1, 5)])
@pytest.mark.parametrize("name", ["crop_reader", "photo_reader"])
def test_pixels_do_not_depend_on_the_workers(request, make_reader, name, num_workers, batch_size):
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


def test_every_sample_comes_once_and_no_tail_is_dropped(crop_reader):
    count = len(crop_reader.beton)
    assert count % 7 != 0
    batches = list(batches_of(np.arange(count)[::-1], 7))
    read = [batch.sample_ids.tolist() for batch in crop_reader.read(batches, 1)]
    assert [len(ids) for ids in read] == [len(batch) for batch in batches]
    assert sum(read, []) == list(range(count))[::-1]  # noqa: RUF017  (a few lists)


def test_a_sample_may_come_twice(crop_reader):
    images = read_all(crop_reader, 1, [np.array([3, 3, 8]), np.array([3])])[0]
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[3])


def test_no_batches_are_an_empty_epoch(crop_reader):
    assert list(crop_reader.read([], 1)) == []
    assert reader_threads() == []


@pytest.mark.parametrize("name", ["crop_reader", "photo_reader"])
def test_views_decoded_together_are_those_decoded_alone(request, name):
    reader = request.getfixturevalue(name)
    together = PixelReader(reader.beton, reader.views, batch_size=9, views_per_sample=3)
    for views in ([0, 1, 4], [7], [2, 2]):
        seen = [[] for _ in views]
        for batch in together.read_views(batches_of(range(len(reader.beton)), 9), views):
            for images, pixels_of_view in zip(seen, batch, strict=True):
                images.append(pixels_of_view.images.permute(0, 2, 3, 1).numpy().copy())
        for images, view in zip(seen, views, strict=True):
            assert np.array_equal(np.concatenate(images), read_all(reader, view)[0])


@pytest.mark.parametrize("views", [[], [1, 2]], ids=str)
def test_another_number_of_views_than_was_prepared_is_refused(crop_reader, views):
    with pytest.raises(ConfigError, match=f"views are {len(views)}, expected 1 to 1"):
        next(crop_reader.read_views([np.arange(3)], views))


def test_a_batch_is_channels_last_bytes_with_integers_beside_it(crop_reader):
    (batch,) = crop_reader.read([np.arange(5)], 1)
    assert (batch.images.shape, batch.images.dtype) == ((5, 3, 32, 32), torch.uint8)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == batch.sample_ids.dtype == torch.int64


def test_a_reader_takes_a_path_or_an_open_beton(tiny_beton, crop_reader):
    for beton in (tiny_beton, str(tiny_beton)):
        reader = PixelReader(beton, crop_reader.views, batch_size=4, num_workers=1)
        assert np.array_equal(reader.beton.labels, crop_reader.beton.labels)


# --- how long a batch lives ---


def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(crop_reader):
    for batch in crop_reader.read(batches_of(np.arange(72), 12), 1):
        before = batch.images.clone()
        time.sleep(0.02)  # the reader fills every buffer that it takes for free
        assert torch.equal(batch.images, before)


def test_a_held_batch_is_overwritten_and_a_clone_is_not(crop_reader):
    batches = batches_of(np.arange(72), 6)
    held = [(batch.images, batch.images.clone()) for batch in crop_reader.read(batches, 1)]
    overwritten = [not torch.equal(images, clone) for images, clone in held]
    assert overwritten[:9] == [True] * 9
    cloned = np.concatenate([clone.permute(0, 2, 3, 1).numpy() for _, clone in held])
    assert np.array_equal(cloned, read_all(crop_reader, 1)[0])


def test_labels_and_ids_may_be_held(crop_reader):
    kept = [
        (batch.labels, batch.sample_ids) for batch in crop_reader.read(batches_of(range(72), 6), 1)
    ]
    assert torch.cat([ids for _, ids in kept]).tolist() == list(range(72))
    assert np.array_equal(torch.cat([labels for labels, _ in kept]), crop_reader.beton.labels)


# --- leaving early ---


def test_leaving_the_loop_early_stops_the_thread(crop_reader):
    for _ in range(30):
        for batch in crop_reader.read(batches_of(np.arange(72), 4), 1):
            assert len(reader_threads()) == 1
            assert len(batch.labels) == 4
            break
        assert reader_threads() == []


def test_dropping_an_iterator_stops_the_thread(crop_reader):
    iterator = crop_reader.read(batches_of(np.arange(72), 4), 1)
    next(iterator)
    assert len(reader_threads()) == 1
    del iterator
    assert reader_threads() == []


def test_an_error_in_the_loop_stops_the_thread_and_frees_the_reader(crop_reader):
    batches = crop_reader.read(batches_of(np.arange(72), 4), 1)
    with pytest.raises(ZeroDivisionError):
        list(len(batch.labels) / 0 for batch in batches)  # noqa: C400  (a loop with an error)
    del batches
    assert reader_threads() == []
    assert len(read_all(crop_reader, 1)[0]) == 72


def test_a_reader_reads_for_one_loop_at_a_time(crop_reader):
    batches = batches_of(np.arange(72), 4)
    first = crop_reader.read(batches, 1)
    next(first)
    with pytest.raises(ConfigError, match="already in use"):
        next(crop_reader.read(batches, 2))
    # The refusal has not freed what the first loop holds.
    with pytest.raises(ConfigError, match="already in use"):
        next(crop_reader.read(batches, 2))
    assert len(list(first)) == len(batches) - 1
    assert len(list(crop_reader.read(batches, 2))) == len(batches)


def test_two_readers_may_be_read_side_by_side(crop_reader, photo_reader):
    expected = read_all(crop_reader, 1)[0], read_all(photo_reader, 2)[0]
    found = [], []
    for crops, photos in zip(
        crop_reader.read(batches_of(np.arange(72), 9), 1),
        photo_reader.read(batches_of(np.arange(24), 3), 2),
        strict=True,
    ):
        for images, batch in zip(found, (crops, photos), strict=True):
            images.append(batch.images.permute(0, 2, 3, 1).numpy().copy())
    for images, whole in zip(found, expected, strict=True):
        assert np.array_equal(np.concatenate(images), whole)


# --- errors arrive ---


@pytest.mark.timeout(60)
def test_an_error_in_the_thread_arrives_in_the_loop(tiny_beton, tmp_path):
    path = copy_into(tmp_path, tiny_beton)
    views = Views(Policy.parse("pad-crop(4, flip)"), 5, 32)
    reader = PixelReader(path, views, batch_size=8, num_workers=1)
    path.unlink()  # it is mapped when the first epoch begins
    with pytest.raises(FileNotFoundError, match=r"train\.beton"):
        next(reader.read([np.arange(8)], 1))
    assert reader_threads() == []


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
    20: ("another start", lambda file: overwritten(file, 0, b"GIF")),
}
"""Position -> what is wrong with its JPEG, and how it is made so."""


@pytest.fixture(scope="module")
def damaged_reader(photo_beton, tmp_path_factory):
    """A reader of `photo_beton` with some of its JPEGs damaged."""
    path = copy_into(tmp_path_factory.mktemp("damaged"), photo_beton)
    beton = open_beton(path)
    with path.open("r+b") as file:
        for position, (_, damage) in DAMAGE.items():
            file.seek(int(beton.pointers[position]))
            file.write(damage(stored_bytes(beton, position)).tobytes())
    return PixelReader(path, Views(Policy.parse("rrc"), 5, 12), batch_size=8, num_workers=2)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("position", DAMAGE, ids=lambda position: DAMAGE[position][0])
def test_a_damaged_jpeg_is_an_error_that_names_its_sample(damaged_reader, position):
    message = rf"sample {position} \(and 0 more of its batch\) in .*train\.beton cannot be decoded"
    batches = damaged_reader.read([np.array([0, position, 23])], 0)
    with pytest.raises(DatasetError, match=message):
        next(batches)
    assert reader_threads() == []


def test_the_first_of_several_damaged_jpegs_is_named(damaged_reader):
    batches = damaged_reader.read([np.array([0, 20, 3, 5, 11])], 0)
    with pytest.raises(DatasetError, match=r"sample 20 \(and 2 more of its batch\)"):
        next(batches)


def test_batches_before_a_damaged_jpeg_arrive(damaged_reader):
    batches = damaged_reader.read(batches_of([0, 2, 4, 5, 6, 8, 9, 10], 2), 0)
    assert next(batches).sample_ids.tolist() == [0, 2]
    assert next(batches).sample_ids.tolist() == [4, 5]
    with pytest.raises(DatasetError, match="sample 8 "):
        next(batches)


def test_whole_jpegs_are_read_beside_damaged_ones(damaged_reader, photo_reader):
    whole = np.setdiff1d(np.arange(24), list(DAMAGE))
    for view in (0, 1):
        images = read_all(damaged_reader, view, batches_of(whole, 8))[0]
        assert np.array_equal(images, read_all(photo_reader, view)[0][whole])


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
def test_a_batch_that_cannot_be_read_is_refused_before_any_is(crop_reader, batch, message):
    batches = [np.arange(4), np.array(batch, dtype=np.int64)]
    with pytest.raises(DatasetError, match=message):
        next(crop_reader.read(batches, 1))
    assert reader_threads() == []


@pytest.mark.parametrize("batch_size", [0, -4])
def test_a_batch_size_below_one_is_refused(tiny_beton, crop_reader, batch_size):
    with pytest.raises(ConfigError, match=f"batch_size is {batch_size}"):
        PixelReader(tiny_beton, crop_reader.views, batch_size=batch_size)


def test_buffers_beyond_the_memory_budget_are_refused(photo_beton, photo_reader):
    needed = photo_reader.memory_bytes
    usual = {"batch_size": photo_reader.batch_size, "num_workers": 1}
    PixelReader(photo_beton, photo_reader.views, memory_budget_bytes=needed, **usual)
    with pytest.raises(ConfigError, match=f"would take {needed:,} bytes, .* {needed - 1:,};"):
        PixelReader(photo_beton, photo_reader.views, memory_budget_bytes=needed - 1, **usual)
    # Three batches of pixels, and for each thread at least a decoded image.
    largest = photo_reader.beton.sizes.prod(axis=1).max()
    assert needed >= 3 * photo_reader.batch_size * 3 * 12**2 + 3 * largest


# --- threads ---


@pytest.mark.parametrize("wanted", [None, 1, 2, 10_000])
def test_no_more_threads_are_used_than_there_are_cores(wanted):
    cores = min(len(os.sched_getaffinity(0)), numba.config.NUMBA_NUM_THREADS)
    assert clamp_workers(wanted) == (cores if wanted is None else min(wanted, cores))


def test_more_workers_than_cores_read_the_same(make_reader, tiny_beton, crop_reader):
    reader = make_reader(tiny_beton, "pad-crop(4, flip)", 32, num_workers=10_000)
    assert reader.num_workers <= os.cpu_count()
    assert np.array_equal(read_all(reader, 1)[0], read_all(crop_reader, 1)[0])


def test_torchs_number_of_threads_stays(tiny_beton, crop_reader):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        reader = PixelReader(tiny_beton, crop_reader.views, batch_size=4, num_workers=1)
        assert torch.get_num_threads() == before + 1
        list(reader.read([np.arange(4)], 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


# --- the function of the library ---


def test_pixels_come_in_the_order_of_the_ids(tiny_beton, crop_reader):
    ids = np.random.default_rng(0).integers(0, 72, size=300)  # more than one batch, with repeats
    expected = read_all(crop_reader, 2)[0][ids]
    policy = Policy.parse("pad-crop(4, flip)")
    assert np.array_equal(pixels(tiny_beton, policy, 5, 2, ids), expected)
    found = pixels(open_beton(tiny_beton), str(policy), 5, 2, ids.tolist(), num_workers=1)
    assert np.array_equal(found, expected)


def test_pixels_have_the_size_asked_for(tiny_beton):
    assert pixels(tiny_beton, "rrc", 0, 1, [4, 2], image_size=9).shape == (2, 9, 9, 3)
    assert pixels(tiny_beton, "rrc", 0, 1, []).shape == (0, 32, 32, 3)


def test_pixels_of_an_unknown_id_are_refused(tiny_beton):
    with pytest.raises(DatasetError, match="sample id 72 "):
        pixels(tiny_beton, "clean", 0, 1, [0, 72])
