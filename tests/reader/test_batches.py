from __future__ import annotations

import collections
import weakref

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdcache.data.beton import open_beton
from kdcache.data.policy import Policy
from kdcache.errors import ConfigError, DatasetError
from kdcache.reader.batches import PixelReader, view_pixels
from kdcache.reader.buffers import BufferPool
from tests.reader.reference import batches_of, read_all, reader_threads

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


def test_batches_may_be_held(crop_reader):
    kept = list(crop_reader.read(batches_of(range(72), 6), 1))
    images, labels, sample_ids = read_all(crop_reader, 1)  # it fills every buffer that is free
    assert torch.cat([batch.sample_ids for batch in kept]).tolist() == sample_ids.tolist()
    assert np.array_equal(torch.cat([batch.labels for batch in kept]), labels)
    held = torch.cat([batch.images for batch in kept]).permute(0, 2, 3, 1)
    assert np.array_equal(held, images)


@pytest.mark.parametrize(
    "part",
    [
        lambda images: images[2],
        lambda images: images.detach(),
        lambda images: images.numpy(),
        lambda images: images.numpy()[1:],
        lambda images: images.untyped_storage(),
        lambda images: memoryview(images.numpy()),
    ],
    ids=["item", "detached", "array", "slice", "storage", "memory"],
)
def test_a_part_of_a_batch_may_be_held(crop_reader, part):
    kept, expected = [], []
    for batch in crop_reader.read(batches_of(range(72), 6), 1):
        kept.append(part(batch.images))
        expected.append(bytes(np.asarray(kept[-1])))
        del batch
    read_all(crop_reader, 2)
    assert [bytes(np.asarray(held)) for held in kept] == expected


@pytest.mark.parametrize("held", [1, 2, 3])
def test_buffers_are_used_again(crop_reader, held):
    """A loop that holds its batch, and one that looks ahead by a few."""
    addresses = set()
    for _ in range(3):
        kept = collections.deque(maxlen=held)
        for batch in crop_reader.read(batches_of(range(72), 4), 1):
            kept.append(batch)
            addresses.add(batch.images.data_ptr())
    assert len(addresses) <= 3 + held + 1


def test_a_pool_keeps_few_of_the_buffers_that_were_held():
    pool = BufferPool((8,), count=2)
    buffers = [pool.take() for _ in range(9)]
    alive = [weakref.ref(buffer) for buffer in buffers]
    held = [pool.lend(buffer, 5) for buffer in buffers]
    del buffers
    assert all(reference() is not None for reference in alive)
    del held
    assert sum(reference() is not None for reference in alive) == 2


# --- leaving early ---


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


@pytest.mark.parametrize("batch_size", [0, -4])
def test_a_batch_size_below_one_is_refused(tiny_beton, crop_reader, batch_size):
    with pytest.raises(ConfigError, match=f"batch_size={batch_size}"):
        PixelReader(tiny_beton, crop_reader.views, batch_size=batch_size)


# --- the function of the library ---


def test_pixels_come_in_the_order_of_the_ids(tiny_beton, crop_reader):
    ids = np.random.default_rng(0).integers(0, 72, size=300)  # more than one batch, with repeats
    expected = read_all(crop_reader, 2)[0][ids]
    policy = Policy.parse("pad-crop(4, flip)")
    assert np.array_equal(view_pixels(tiny_beton, policy, 5, 2, ids), expected)
    found = view_pixels(open_beton(tiny_beton), str(policy), 5, 2, ids.tolist(), num_workers=1)
    assert np.array_equal(found, expected)


def test_pixels_have_the_size_asked_for(tiny_beton):
    assert view_pixels(tiny_beton, "rrc", 0, 1, [4, 2], image_size=9).shape == (2, 9, 9, 3)
    assert view_pixels(tiny_beton, "rrc", 0, 1, []).shape == (0, 32, 32, 3)


def test_pixels_of_an_unknown_id_are_refused(tiny_beton):
    with pytest.raises(DatasetError, match="sample id 72 "):
        view_pixels(tiny_beton, "clean", 0, 1, [0, 72])
