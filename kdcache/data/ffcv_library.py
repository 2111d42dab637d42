"""Load FFCV's C library, which decodes JPEGs with libjpeg-turbo and resizes with OpenCV.

`import ffcv` would load torch and set the threads of torch and numba to 1, so only the library is
loaded. This is the only file that names the package.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec


@cache
def ffcv_library() -> ctypes.CDLL:
    """Return the library, with the argument types of its functions `imdecode` and `resize`.

    Raises:
        ImportError: if ffcv is not installed.
    """
    package = find_spec("ffcv")  # finds it without running it
    found = package and PathFinder.find_spec("_libffcv", package.submodule_search_locations)
    if found is None or found.origin is None:
        raise ImportError("ffcv is not installed, expected its library _libffcv. pip install ffcv")
    library = ctypes.CDLL(found.origin)
    number, flag = ctypes.c_uint32, ctypes.c_bool
    library.imdecode.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint64, number, number),  # file, its bytes, height, width
        *(ctypes.c_void_p, number, number),  # pixels, height and width of the crop
        *(number, number, number, number),  # offsets of the crop, numerator and denominator
        *(flag, flag),  # whether to crop, whether to mirror
    ]
    library.resize.argtypes = 11 * [ctypes.c_int64]
    return library


def address_of(name: str) -> int:
    """Return the address of one of the library's functions, for compiled code."""
    address = ctypes.cast(getattr(ffcv_library(), name), ctypes.c_void_p).value
    assert address is not None  # noqa: S101  (a function that was found has one)
    return address
