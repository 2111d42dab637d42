"""Tell what a file holds by its first bytes, whatever its name."""

from __future__ import annotations

import re
from pathlib import Path

HEAD_BYTES = 512
"""Number of bytes at the start of a file that are enough to recognise it."""

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp"),
        *(".tif", ".tiff", ".webp", ".gif", ".jp2", ".avif", ".heic", ".heif", ".jxl"),
    }
)
"""Suffixes of images. A file with one of them counts as an image whatever it holds; other files
count by their first bytes."""

_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"8BPS", "Photoshop"),
)
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1"), "HEIC"),
}
_PNM = re.compile(rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s")
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}
"""Possible sizes of the second header of a BMP, in bytes."""

_WEB_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")


def image_format(head: bytes) -> str | None:
    """Return the format of an image file, or None if the file is no image.

    Formats that kdcache cannot decode, such as HEIC, are recognised too: their author meant an
    image.

    Args:
        head: the first `HEAD_BYTES` bytes of the file, or all of a shorter one.
    """
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return "PPM" if _PNM.match(head) else None


def describe_content(head: bytes) -> str | None:
    """Return what a file holds and what to do about it, or None if its bytes do not tell.

    Args:
        head: the first `HEAD_BYTES` bytes of the file, or all of a shorter one.

    Returns:
        The end of a sentence: "is a zip archive. Unpack it".
    """
    if not head:
        return "is empty. Copy it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer. Fetch the file: git lfs pull"
    if head.startswith(b"\x1f\x8b"):
        return "is compressed by gzip. Unpack it with gunzip first"
    if head.startswith((b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "is compressed (bzip2, xz or zstd). Unpack it first"
    if head.startswith((b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!")):
        return "is a zip, 7z or rar archive. Unpack it first"
    if head.lstrip().lower().startswith(_WEB_PAGES):
        return "is a web page or other text. Download it again"
    if not head.strip(b"\0"):
        return "contains only zeros. Copy it again"
    if is_tar(head):
        return "is a tar file. Name it NAME.tar"
    if head.startswith(b"PAR1"):
        return None
    if (name := image_format(head)) is not None:
        return f"is an image ({name}). Name the folder of its class folders"
    return None


def is_tar(head: bytes) -> bool:
    """Return whether a file begins as a tar file."""
    return head[257:262] == b"ustar"


def read_head(path: Path | str) -> bytes:
    """Return the first `HEAD_BYTES` bytes of a regular file."""
    with Path(path).open("rb") as file:
        return file.read(HEAD_BYTES)
