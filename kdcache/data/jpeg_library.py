"""Load libjpeg-turbo, the library with which FFCV decodes JPEG files.

Its functions are found through FFCV's compiled module, which is linked with it, so this is the
library that FFCV itself uses. `import ffcv` would load torch and set the threads of torch and numba
to 1, so only the module is loaded. This is the only file that names the package.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

RGB_FORMAT = 0
"""TJPF_RGB of the TurboJPEG API: 3 bytes per pixel."""


@cache
def jpeg_library() -> ctypes.CDLL:
    """Return the library, with the argument types of the functions that Python calls.

    Raises:
        ImportError: if ffcv is not installed or cannot be loaded.
    """
    package = find_spec("ffcv")  # finds it without running it
    found = package and PathFinder.find_spec("_libffcv", package.submodule_search_locations)
    if found is None or found.origin is None:
        raise ImportError("ffcv is not installed, expected its library _libffcv. pip install ffcv")
    try:
        library = ctypes.CDLL(found.origin)
    except OSError as error:  # an OSError would be taken for a file that cannot be read
        message = f"ffcv's library cannot be loaded: {error}. Run: kdcache doctor"
        raise ImportError(message) from error
    library.tjInitDecompress.restype = ctypes.c_void_p
    library.tjDestroy.argtypes = [ctypes.c_void_p]
    library.tjDecompress2.argtypes = [
        *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_ulong),  # decoder, file, its bytes
        *(
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
        ),  # pixels: width, pitch, height
        *(ctypes.c_int, ctypes.c_int),  # pixel format, flags
    ]
    return library


def address_of(name: str) -> int:
    """Return the address of one of the library's functions, for compiled code."""
    address = ctypes.cast(getattr(jpeg_library(), name), ctypes.c_void_p).value
    assert address is not None  # noqa: S101  (a function that was found has one)
    return address


def new_decoder() -> int:
    """Return the address of a new decoder, for one thread at a time; see `free_decoder`.

    Raises:
        MemoryError: if the library has no memory for it.
    """
    decoder: int | None = jpeg_library().tjInitDecompress()
    if decoder is None:
        raise MemoryError("libjpeg-turbo has no memory for a decoder")
    return decoder


def free_decoder(decoder: int) -> None:
    """Free the memory of a decoder."""
    jpeg_library().tjDestroy(decoder)


@cache
def _decoder() -> int:
    return new_decoder()


def decode_jpeg(content: bytes, height: int, width: int) -> npt.NDArray[np.uint8] | None:
    """Decode a JPEG as the reader does, which equals Pillow's result. One thread at a time.

    Args:
        content: a JPEG file, in colour or grey.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        (height, width, 3) RGB; None if the decoder reports a problem. It also reports some that
        Pillow passes over, such as bytes between markers.
    """
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    status: int = jpeg_library().tjDecompress2(
        _decoder(), content, len(content), pixels.ctypes.data, width, 0, height, RGB_FORMAT, 0
    )
    return None if status else pixels
