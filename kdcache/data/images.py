"""Convert an encoded image file to the bytes that a beton stores. The pack workers run this.

Every mode that Pillow reads becomes 8-bit RGB. Grey is repeated, palettes are looked up, and alpha
is dropped, as in torchvision. CMYK and YCbCr are converted. 16-bit grey keeps its upper byte.
Floating-point grey is scaled from [0, 1] or taken as [0, 255]. EXIF orientation is applied. Of an
animation, the first frame is used. Colour profiles are neither applied nor stored. The content of a
file decides its format, not its name.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from kdcache.data.digests import digest_bytes, digest_pixels
from kdcache.data.file_content import HEAD_BYTES, describe_content, image_format
from kdcache.data.jpeg_library import decode_jpeg
from kdcache.data.stored_image import StoredImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are decoded, whatever the file's name. Pillow reads more formats, but runs another
program for EPS."""

JPEG_QUALITY = 90
"""Quality of the JPEGs that kdcache encodes; FFCV's default."""

MAX_SIDE = 2**16 - 1
"""Maximum height and width in pixels: the beton format stores them as 16-bit numbers."""

MAX_IMAGE_PIXELS = 178_956_970
"""Default for the maximum number of pixels of an image file: half a gigabyte as RGB."""

_EXIF_ORIENTATION = 0x0112


def store_image(
    content: bytes,
    *,
    write_mode: Literal["raw", "jpg"],
    max_resolution: int | None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> StoredImage:
    """Decode an image file and encode it for the beton.

    A JPEG that needs no change is not encoded again, so its pixels stay the same. All JPEGs get
    restart markers, so that the decoder can read only the rows of a crop.

    Args:
        content: an encoded image file.
        write_mode: `raw` pixels or `jpg`.
        max_resolution: maximum height and width in pixels; larger images are shrunk.
        max_image_pixels: maximum number of pixels of the file, before it is shrunk. A small file
            can state a size that takes all memory.

    Raises:
        OSError, ValueError, SyntaxError: if the file cannot be decoded; most come from Pillow.
    """
    limit = min(max_resolution or MAX_SIDE, MAX_SIDE)
    with _open(content, max_image_pixels) as image:
        is_jpeg = image.format in {"JPEG", "MPO"}  # MPO: a JPEG that is followed by others
        may_stay = is_jpeg and image.mode in {"RGB", "L"} and max(image.size) <= limit
        as_read = None
        if write_mode == "jpg" and may_stay and _is_upright(image):
            as_read = _decoded_by_reader(content, image.size)
        if as_read is None:
            image.load()
            rgb = to_rgb(image)
            if max(rgb.size) > limit:
                rgb.thumbnail((limit, limit), Image.Resampling.BICUBIC, reducing_gap=None)
        else:
            rgb = as_read
    pixels = None  # as the reader decodes the stored image
    if write_mode == "raw":
        pixels = stored = rgb.tobytes()
    elif as_read is not None:
        pixels = as_read.tobytes()  # restart markers change no pixel
        # Imported here: numba takes half a second, and workers for raw images do not need it.
        from kdcache.data.restart import add_restart_markers

        stored = add_restart_markers(content) or content
    else:
        file = io.BytesIO()
        rgb.save(file, "JPEG", quality=JPEG_QUALITY, restart_marker_rows=1)
        stored = file.getvalue()
    if pixels is None:
        if (decoded := _decoded_by_reader(stored, rgb.size)) is None:
            raise ValueError("the reader cannot decode the JPEG that it was encoded to")
        pixels = decoded.tobytes()
    digests = (
        digest_bytes(content),
        digest_pixels(rgb.height, rgb.width, pixels),
        digest_bytes(stored),
    )
    return StoredImage(
        content=stored,
        is_jpeg=write_mode == "jpg",
        height=rgb.height,
        width=rgb.width,
        digests=np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(3, -1),
        channel_sums=_channel_sums(rgb),
    )


def _open(content: bytes, max_pixels: int) -> Image.Image:
    if not content:
        raise ValueError("the file is empty")
    try:
        with without_pillows_limit():
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        # Pillow's message contains the address of an object, which differs in every run.
        head = content[:HEAD_BYTES]
        if (name := image_format(head)) in {"HEIC", "JPEG XL", "Photoshop"}:
            reason = f"it is a {name} image; convert it to {FORMATS[0]} or {FORMATS[1]}"
        elif name is None and (found := describe_content(head)) is not None:
            reason = f"it {found}"
        else:
            reason = f"it is none of {', '.join(FORMATS)}, or its header is damaged"
        raise ValueError(reason) from None
    if image.width * image.height > max_pixels:
        image.close()
        raise ValueError(
            f"it has {image.width:,} x {image.height:,} pixels, expected at most {max_pixels:,}. "
            f"If that is right, raise --max-image-pixels to {image.width * image.height}"
        )
    return image


@contextmanager
def without_pillows_limit() -> Iterator[None]:
    """Let Pillow open an image of any size: this module has a limit of its own."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB and apply its EXIF orientation.

    Raises:
        ValueError: if a floating-point value is NaN or outside [0, 255].
    """
    if not _is_upright(image):
        image = ImageOps.exif_transpose(image)
    # Without this, Pillow warns about every palette whose transparency is dropped.
    image.info.pop("transparency", None)
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip 16-bit values at 255.
        upper_byte = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
        image = Image.fromarray(upper_byte.astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(_grey_of_floats(np.asarray(image)))
    return image.convert("RGB")


def _grey_of_floats(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Scale values in [0, 1] to [0, 255]; keep other values in [0, 255] as they are."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # noqa: PLR2004  (NaN fails too)
        raise ValueError(
            f"its floating-point values go from {low:g} to {high:g}, expected [0, 1] or [0, 255]"
        )
    scale = 255 if high <= 1 else 1
    grey: npt.NDArray[np.uint8] = np.floor(values * np.float32(scale) + np.float32(0.5)).astype(
        np.uint8
    )
    return grey


def _is_upright(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_EXIF_ORIENTATION) not in range(2, 9)
    except Exception:  # noqa: BLE001  (Pillow raises almost anything on damaged EXIF data)
        return True


def _decoded_by_reader(content: bytes, size: tuple[int, int]) -> Image.Image | None:
    """Decode a JPEG with the reader's decoder; return None if the decoder reports a problem."""
    pixels = decode_jpeg(content, size[1], size[0])
    return None if pixels is None else Image.frombuffer("RGB", size, pixels, "raw", "RGB", 0, 1)


def _channel_sums(rgb: Image.Image) -> npt.NDArray[np.int64]:
    counts = np.array(rgb.histogram(), dtype=np.int64).reshape(3, 256)
    values = np.arange(256, dtype=np.int64)
    return np.stack([counts @ values, counts @ values**2], axis=1)
