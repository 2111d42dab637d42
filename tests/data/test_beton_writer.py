"""Writing a beton, and reading it with FFCV."""

from __future__ import annotations

import numpy as np
import pytest
from ffcv.reader import Reader
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.data.beton_manifest import (
    fingerprint,
)
from kdcache.data.beton_writer import write_beton
from kdcache.data.ffcv_format import PAGE_SIZE_BYTES
from kdcache.data.stored_image import StoredImage
from kdcache.errors import DatasetError

# --- writing ---


def stored(*lengths):
    """Return stored images of any bytes, of these lengths."""
    for number, length in enumerate(lengths):
        content = bytes([number + 1]) * length
        yield StoredImage(content, True, 1, 1, bytes(16), np.zeros((3, 2), dtype=np.int64))


def numbered(images):
    """Return images as samples: their number doubled is the label, tripled the sample id."""
    return ((image, 2 * number, 3 * number) for number, image in enumerate(images))


@pytest.mark.parametrize(
    ("lengths", "pages"),
    [
        ((10, 20, 30), [0, 0, 0]),
        ((PAGE_SIZE_BYTES, 1), [0, 1]),
        ((PAGE_SIZE_BYTES - 1, 1, 1), [0, 0, 1]),
        ((PAGE_SIZE_BYTES - 1, 2, PAGE_SIZE_BYTES - 2), [0, 1, 1]),
        ((1, PAGE_SIZE_BYTES), [0, 1]),
    ],
    ids=str,
)
def test_no_image_lies_across_two_pages(tmp_path, lengths, pages):
    path = tmp_path / "a.beton"
    count = len(lengths)
    size = write_beton(path, numbered(stored(*lengths)), count).bytes
    assert size == path.stat().st_size
    reader = Reader(str(path))
    data = np.memmap(path, dtype=np.uint8, mode="r")
    first = reader.alloc_table["ptr"]
    last = first + reader.alloc_table["size"] - 1
    # The first page holds header and metadata alone.
    assert (first // PAGE_SIZE_BYTES).tolist() == [page + 1 for page in pages]
    assert (last // PAGE_SIZE_BYTES).tolist() == [page + 1 for page in pages]
    assert reader.alloc_table["size"].tolist() == list(lengths)
    assert reader.metadata["f0"]["data_ptr"].tolist() == first.tolist()
    assert reader.metadata["f1"].tolist() == [2 * number for number in range(count)]
    assert reader.metadata["f2"].tolist() == [3 * number for number in range(count)]
    for number, (start, end) in enumerate(zip(first, last, strict=True)):
        assert data[start] == data[end] == number + 1


def test_fewer_images_than_there_was_room_for_make_a_whole_beton(tmp_path):
    path = tmp_path / "a.beton"
    assert write_beton(path, numbered(stored(10, 20)), 5).bytes == path.stat().st_size
    reader = Reader(str(path))
    assert reader.num_samples == len(reader.alloc_table) == 2
    assert reader.metadata["f2"].tolist() == [0, 3]
    assert path.stat().st_size == reader.alloc_table["ptr"][0] + PAGE_SIZE_BYTES + 2 * 24


def test_an_image_larger_than_a_page_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=f"sample 3 takes {PAGE_SIZE_BYTES + 1:,} bytes"):
        write_beton(tmp_path / "a.beton", numbered(stored(5, PAGE_SIZE_BYTES + 1)), 2)
    assert list(tmp_path.iterdir()) == []


def test_a_beton_that_cannot_be_finished_leaves_the_one_before(tmp_path):
    def images():
        yield from stored(5)
        raise OSError("no more images")

    path = tmp_path / "a.beton"
    write_beton(path, numbered(stored(10)), 1)
    before = path.read_bytes()
    with pytest.raises(OSError, match="no more images"):
        write_beton(path, numbered(images()), 2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=10), st.data())
@settings(deadline=None, max_examples=50)
def test_a_fingerprint_is_of_names_ids_labels_and_images(labels, data):
    count = len(labels)
    content = {
        "class_names": ["a", "b", "c", "d"],
        "sample_ids": np.arange(count),
        "labels": np.array(labels),
        "digests": np.arange(16 * count, dtype=np.uint8).reshape(count, 16),
    }
    place = data.draw(st.integers(0, count - 1))
    changed = {name: values.copy() for name, values in content.items()}
    name = data.draw(st.sampled_from(list(content)))
    if name == "class_names":
        changed[name][0] = "A"
    else:
        changed[name][place] += 1
    assert fingerprint(**content) == fingerprint(**content)
    assert fingerprint(**(content | {name: changed[name]})) != fingerprint(**content)
