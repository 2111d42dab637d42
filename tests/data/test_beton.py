from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.libffcv import imdecode
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from ffcv.transforms import ToTensor
from ffcv.types import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    TYPE_ID_HANDLER,
    FieldDescType,
    HeaderType,
    get_metadata_type,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcache.commands import parse
from kdcache.data import ffcv_format
from kdcache.data.beton import open_beton
from kdcache.data.beton_manifest import (
    BetonManifest,
    fingerprint,
    manifest_path,
    pack_again,
)
from kdcache.data.digests import DECODED, digests_path
from kdcache.data.ffcv_format import digest_tables
from kdcache.data.pack import pack
from kdcache.errors import DatasetError
from kdcache.options import PackOptions
from kdcache.seals import write_sealed_json
from tests.conftest import write_images

OTHER_TABLES = "has a header or tables that differ from their digest"


def test_the_layout_is_that_of_ffcv():
    fields = [RGBImageField(), IntField(), IntField()]
    assert ffcv_format.VERSION == CURRENT_VERSION
    for ours, theirs in (
        (ffcv_format.HEADER, HeaderType),
        (ffcv_format.FIELD, FieldDescType),
        (ffcv_format.ALLOCATION, ALLOC_TABLE_TYPE),
        (ffcv_format.SAMPLE, get_metadata_type(fields)),
    ):
        assert (ours, ours.itemsize, ours.fields) == (theirs, theirs.itemsize, theirs.fields)
    table = ffcv_format.field_table()
    for record, field in zip(table, fields, strict=True):
        assert TYPE_ID_HANDLER[int(record["type_id"])] is type(field)
        assert record["arguments"].tobytes() == field.to_binary().tobytes()
    modes = (ffcv_format.JPEG_MODE, ffcv_format.RAW_MODE)
    assert modes == (IMAGE_MODES["jpg"], IMAGE_MODES["raw"])


def pixels_of_files(folder):
    """Return the pixels of an ImageFolder's files, in the order of a pack."""
    pixels = []
    for path in sorted(folder.rglob("*.*")):
        with Image.open(path) as image:
            pixels.append(np.asarray(image.convert("RGB")))
    return pixels


def size_of(path):
    """Return height and width of an image file."""
    with Image.open(path) as image:
        return image.height, image.width


def copy_into(folder, beton):
    """Copy a beton, its manifest and its digests; return the copy's path."""
    shutil.copy(manifest_path(beton), folder)
    shutil.copy(digests_path(beton), folder)
    return Path(shutil.copy(beton, folder))


@pytest.fixture(scope="module")
def whole_beton(tmp_path_factory):
    """A raw beton of 20 images of 16 px in 3 classes and its folder of images."""
    folder = write_images(tmp_path_factory.mktemp("small"), count=20, classes=3, sides=(16, 16))
    workspace = tmp_path_factory.mktemp("small-workspace")
    pack(PackOptions(str(folder), workspace=workspace, val_fraction=0))
    return workspace / "train.beton", folder


@pytest.fixture
def beton(whole_beton, tmp_path):
    """A copy of `whole_beton` to damage."""
    path, _ = whole_beton
    return copy_into(tmp_path, path)


def edit_header(path, **fields):
    """Change fields of a beton's header."""
    header = np.fromfile(path, dtype=HeaderType, count=1)
    for name, value in fields.items():
        header[name] = value
    with path.open("r+b") as file:
        file.write(header.tobytes())


def edit_manifest(path, **fields):
    """Change fields of a beton's manifest."""
    replace(BetonManifest.load(path), **fields).save(path)


def edit_size(path, side, pixels):
    """Change height or width of one image in a beton's table."""
    reader = Reader(str(path))
    metadata = reader.metadata.copy()
    metadata["f0"][side][7] = pixels
    with path.open("r+b") as file:
        file.seek(HeaderType.itemsize + reader.field_descriptors.nbytes)
        file.write(metadata.tobytes())


# --- an ordinary beton ---


def test_stock_ffcv_reads_the_same_labels_ids_and_pixels(whole_beton):
    path, folder = whole_beton
    loader = Loader(
        str(path),
        batch_size=20,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={
            "image": [SimpleRGBImageDecoder(), ToTensor()],
            "label": [IntDecoder(), ToTensor()],
            "sample_id": [IntDecoder(), ToTensor()],
        },
    )
    ((images, labels, sample_ids),) = loader
    assert np.array_equal(images.numpy(), pixels_of_files(folder))
    assert labels.flatten().tolist() == [0] * 7 + [1] * 7 + [2] * 6
    assert sample_ids.flatten().tolist() == list(range(20))


def test_stock_ffcv_reads_the_jpegs_that_were_packed(photo_beton, photo_folder):
    reader = Reader(str(photo_beton))
    data = np.memmap(photo_beton, dtype=np.uint8, mode="r")
    files = sorted(photo_folder.rglob("*.jpg"))
    rows = zip(files, reader.metadata["f0"], reader.alloc_table, strict=True)
    for path, image, row in rows:
        height, width = int(image["height"]), int(image["width"])
        assert (height, width) == size_of(path)
        decoded = []
        for content in (data[row["ptr"] : row["ptr"] + row["size"]], np.fromfile(path, np.uint8)):
            pixels = np.empty((height, width, 3), dtype=np.uint8)
            assert imdecode(np.array(content), pixels, height, width, height, width) == 0
            decoded.append(pixels)
        assert np.array_equal(*decoded)


def test_a_beton_opens_with_its_tables(whole_beton):
    path, folder = whole_beton
    beton = open_beton(str(path))
    data = path.read_bytes()
    assert len(beton) == 20
    assert beton.manifest == BetonManifest.load(path)
    assert beton.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 6
    assert beton.sample_ids.tolist() == list(range(20))
    assert beton.sizes.tolist() == [[16, 16]] * 20
    rows = zip(beton.pointers, beton.lengths, pixels_of_files(folder), strict=True)
    for pointer, length, pixels in rows:
        assert data[pointer : pointer + length] == pixels.tobytes()


def test_sizes_are_height_before_width(photo_beton, photo_folder):
    files = sorted(photo_folder.rglob("*.jpg"))
    sizes = open_beton(photo_beton).sizes.tolist()
    assert sizes == [list(size_of(path)) for path in files]
    assert any(height != width for height, width in sizes)


# --- what is not a whole beton ---


def test_a_missing_beton_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"other\.beton is missing"):
        open_beton(tmp_path / "other.beton")


def test_a_beton_without_its_manifest_is_refused(beton):
    manifest_path(beton).unlink()
    with pytest.raises(DatasetError, match=r"train\.json is missing"):
        open_beton(beton)


def test_a_manifest_of_another_version_is_refused(beton):
    edit_manifest(beton, format_version=0)
    with pytest.raises(DatasetError, match=r"format_version of .*train\.json is 0"):
        open_beton(beton)


@pytest.mark.parametrize("lost", [1, ALLOC_TABLE_TYPE.itemsize, 2000, 2**20])
def test_a_truncated_beton_is_refused(beton, lost):
    size = beton.stat().st_size
    with beton.open("r+b") as file:
        file.truncate(size - lost)
    with pytest.raises(DatasetError, match=f"has {size - lost:,} bytes, expected {size:,}"):
        open_beton(beton)


def test_a_longer_beton_is_refused(beton):
    size = beton.stat().st_size
    with beton.open("ab") as file:
        file.write(bytes(ALLOC_TABLE_TYPE.itemsize))
    with pytest.raises(DatasetError, match=f"expected {size:,}"):
        open_beton(beton)


@pytest.mark.parametrize(
    "fields",
    [
        {"alloc_table_ptr": 0},  # what FFCV's writer leaves when it dies
        {"alloc_table_ptr": 2**40},
        {"num_samples": 19},
        {"num_samples": 2**40},
        {"num_fields": 2},
        {"version": 1},
    ],
    ids=str,
)
def test_an_unfinished_or_foreign_header_is_refused(beton, fields):
    edit_header(beton, **fields)
    with pytest.raises(DatasetError, match=OTHER_TABLES):
        open_beton(beton)


def test_a_manifest_with_another_number_of_samples_is_refused(beton):
    edit_manifest(beton, samples=21)
    with pytest.raises(DatasetError, match=OTHER_TABLES):
        open_beton(beton)


def test_the_manifest_of_another_beton_is_refused(beton, tiny_beton):
    shutil.copy(manifest_path(tiny_beton), manifest_path(beton))
    size = beton.stat().st_size
    with pytest.raises(DatasetError, match=f"has {size:,} bytes, expected"):
        open_beton(beton)


@pytest.mark.parametrize("column", ["ptr", "size"])
def test_a_table_that_does_not_fit_its_images_is_refused(beton, column):
    header = np.fromfile(beton, dtype=HeaderType, count=1)[0]
    offset = int(header["alloc_table_ptr"])
    table = np.fromfile(beton, dtype=ALLOC_TABLE_TYPE, offset=offset)
    table[column][7] += 3
    with beton.open("r+b") as file:
        file.seek(offset)
        file.write(table.tobytes())
    with pytest.raises(DatasetError, match=OTHER_TABLES):
        open_beton(beton)


@pytest.mark.parametrize("side", ["height", "width"])
@pytest.mark.parametrize("pixels", [0, 15, 17])
def test_a_size_that_does_not_fit_its_image_is_refused(beton, side, pixels):
    edit_size(beton, side, pixels)
    with pytest.raises(DatasetError, match=OTHER_TABLES):
        open_beton(beton)


@pytest.mark.parametrize("side", ["height", "width"])
def test_a_jpeg_without_a_size_is_refused(photo_beton, tmp_path, side):
    beton = copy_into(tmp_path, photo_beton)
    edit_size(beton, side, 0)
    with pytest.raises(DatasetError, match=OTHER_TABLES):
        open_beton(beton)


# --- sample ids ---


@pytest.fixture(scope="module")
def spread(whole_beton, tmp_path_factory):
    """A beton whose sample ids are 3, 6, 9, ..., as a packed subset's would be."""
    path, _ = whole_beton
    reader = Reader(str(path))
    metadata = reader.metadata.copy()
    metadata["f2"] = 3 * (metadata["f2"] + 1)
    copy = copy_into(tmp_path_factory.mktemp("spread"), path)
    with copy.open("r+b") as file:
        file.seek(HeaderType.itemsize + reader.field_descriptors.nbytes)
        file.write(metadata.tobytes())
    found = fingerprint(
        BetonManifest.load(copy).class_names,
        metadata["f2"].astype(np.int64),
        metadata["f1"].astype(np.int64),
        np.load(digests_path(copy))[:, DECODED],
    )
    tables = (np.fromfile(copy, HeaderType, 1), reader.field_descriptors, metadata)
    allocations = np.fromfile(copy, ALLOC_TABLE_TYPE, offset=int(tables[0]["alloc_table_ptr"][0]))
    edit_manifest(copy, fingerprint=found, tables_digest=digest_tables(*tables, allocations))
    return open_beton(copy)


@given(st.lists(st.integers(0, 19), max_size=30))
@settings(deadline=None, max_examples=50)
def test_positions_come_in_the_order_asked_for(spread, wanted):
    positions = spread.positions([3 * (position + 1) for position in wanted])
    assert positions.dtype == np.int64
    assert positions.tolist() == wanted


@pytest.mark.parametrize("missing", [-3, 0, 4, 61, 63, 10**12])
def test_an_id_that_is_not_there_is_named(spread, missing):
    with pytest.raises(DatasetError, match=rf"sample id {missing} \(and 0 more\)"):
        spread.positions([3, missing, 60])


def test_the_first_of_several_missing_ids_is_named(spread):
    with pytest.raises(DatasetError, match=r"sample id 7 \(and 1 more\)"):
        spread.positions([3, 7, 6, 1])


@pytest.mark.parametrize(
    ("sample_ids", "message"),
    [
        (np.ones(20, dtype=bool), r"bool of shape \(20,\)"),
        ([3.0, 6.0], r"float64 of shape \(2,\)"),
        ([[3, 6]], r"int64 of shape \(1, 2\)"),
        (3, r"int64 of shape \(\)"),
    ],
    ids=["mask", "floats", "table", "one"],
)
def test_anything_but_a_row_of_integers_is_refused(spread, sample_ids, message):
    with pytest.raises(DatasetError, match=message):
        spread.positions(sample_ids)


@pytest.mark.parametrize("kind", ["digests", "manifest", "label"])
def test_content_that_is_not_the_manifests_is_refused(beton, kind):
    if kind == "digests":
        digests = np.load(digests_path(beton))
        digests[7, DECODED, 3] ^= 1
        np.save(digests_path(beton), digests)
    elif kind == "manifest":
        edit_manifest(beton, fingerprint="0" * 64)
    else:
        reader = Reader(str(beton))
        metadata = reader.metadata.copy()
        metadata["f1"][7] += 1
        with beton.open("r+b") as file:
            file.seek(HeaderType.itemsize + reader.field_descriptors.nbytes)
            file.write(metadata.tobytes())
    expected = f"fingerprint .*, expected {BetonManifest.load(beton).fingerprint[:12]}"
    with pytest.raises(DatasetError, match=OTHER_TABLES if kind == "label" else expected):
        open_beton(beton)


@pytest.mark.parametrize("path_of", [manifest_path, lambda path: path], ids=["json", "beton"])
def test_no_bit_before_the_tables_is_a_traceback(beton, path_of):
    """FFCV looks up what a damaged descriptor says, and decodes it, without a check."""
    intact = path_of(beton).read_bytes()
    end = min(len(intact), HeaderType.itemsize + Reader(str(beton)).field_descriptors.nbytes)
    meant = open_beton(beton).manifest
    for place in range(0, end, 3):
        for bit in (1, 128):
            with path_of(beton).open("r+b") as file:
                file.seek(place)
                file.write(bytes([intact[place] ^ bit]))
            try:
                open_beton(beton)
            except DatasetError as error:
                assert "kdcache pack" in str(error)  # noqa: PT017  (not all bits mean something)
            with path_of(beton).open("r+b") as file:
                file.seek(place)
                file.write(intact[place : place + 1])
    assert open_beton(beton).manifest == meant


def test_a_beton_of_other_fields_is_refused(beton):
    with beton.open("r+b") as file:
        file.seek(HeaderType.itemsize + 1)
        file.write(b"\xff")
    with pytest.raises(
        DatasetError, match=r"header or tables that differ .*kdcache pack .* --overwrite"
    ):
        open_beton(beton)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda content: content.pop("mean"), "mean"),
        (lambda content: content.update(means=[]), "means"),
    ],
    ids=["missing", "unknown"],
)
def test_a_manifest_of_other_fields_is_refused(beton, change, named):
    content = json.loads(manifest_path(beton).read_text())
    change(content)
    del content["seal"]
    write_sealed_json(manifest_path(beton), content)
    message = rf"missing or unknown fields: {named}\. Run: kdcache pack .* --overwrite"
    with pytest.raises(DatasetError, match=message):
        open_beton(beton)


@pytest.mark.parametrize("content", ["", "[]", '{"format_version": 1,'])
def test_a_manifest_that_is_no_json_object_is_refused(beton, content):
    manifest_path(beton).write_text(content)
    with pytest.raises(DatasetError, match=r"train\.json .*Run: kdcache pack SOURCE --overwrite"):
        open_beton(beton)


def test_the_remedy_is_the_command_that_made_the_beton(tmp_path, beton):
    manifest = BetonManifest.load(beton)
    made_from = manifest.made_from | {"path": "/my photos", "val_source": "a b", "seed": 3}
    found = pack_again(beton, replace(manifest, made_from=made_from))
    assert found.startswith("Run: kdcache pack '/my photos' --val-source 'a b' --write-mode auto")
    assert found.endswith(f" --seed 3 --overwrite --workspace {beton.parent}")
    (tmp_path / "of mine.npz").touch()
    of_subset = f"Run: kdcache pack --subset '{tmp_path}/of mine.npz' --overwrite"
    (tmp_path / "w" / "subsets").mkdir(parents=True)
    (tmp_path / "w" / "subsets" / "s.npz").touch()
    assert pack_again(tmp_path / "w" / "subsets" / "s.beton").endswith(f" --workspace {tmp_path}/w")
    assert pack_again(tmp_path / "of mine.beton") == of_subset
    assert pack_again(tmp_path / "of mine.beton", manifest) == of_subset


@pytest.mark.parametrize(
    "content",
    [None, b"", b"not numpy's", b"\x93NUMPY\x01\x00\x08\x00{'a': 1\n"],
    ids=["missing", "empty", "other", "header"],
)
def test_a_beton_without_readable_digests_is_refused(beton, content):
    digests_path(beton).unlink()
    if content is not None:
        digests_path(beton).write_bytes(content)
    with pytest.raises(DatasetError, match=r"train\.digests\.npy cannot be read"):
        open_beton(beton)


def test_a_beton_of_an_earlier_version_is_refused_with_the_command_that_packs_it_again(beton):
    content = BetonManifest.load(beton).to_json() | {"format_version": 1}
    for name in ("tables_digest", "digests_digest", "names_digest"):
        del content[name]
    manifest_path(beton).write_text(json.dumps(content, indent=2))
    with pytest.raises(DatasetError, match=r"format_version of .* is 1, expected 2\.") as error:
        open_beton(beton)
    message = error.value.in_shell()
    assert "\n" not in message
    options = parse(shlex.split(message.partition("Run: kdcache ")[2])).options
    made_from = content["made_from"]
    assert (options.source, options.val_fraction) == (made_from["path"], made_from["val_fraction"])
    assert (options.overwrite, options.workspace) == (True, beton.parent)
