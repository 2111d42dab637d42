"""The decoder operation: one stored image and a view number in, final pixels out.

It runs inside FFCV's compiled, multi-threaded pipeline, for teacher pass, student and evaluation
alike. A pixel depends on stored bytes, box and output size alone.

numba freezes what a closure captures, so whatever changes between epochs (the view number) and
whatever is large (tables by position) reaches the compiled code by address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from ffcv.libffcv import imdecode, resize_crop
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from numba.core import cgutils, types
from numba.extending import intrinsic

from kdcache.data.views import Views, view_box

_JPEG = 0
"""FFCV's number of that write mode."""


@intrinsic
def _address_to_pointer(typing_context: Any, address: Any) -> Any:  # noqa: ARG001  (numba's form)
    """Turn an integer address into a pointer that `numba.carray` accepts."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.uintp), generate


class ViewDecoder(Operation):
    """FFCV decoder of the images' views.

    Args:
        views: policy, seed and image size.
        sample_ids: (N,) int64 by position.
        largest: height and width of the largest stored image.
    """

    def __init__(
        self, views: Views, sample_ids: npt.NDArray[np.int64], largest: tuple[int, int]
    ) -> None:
        super().__init__()
        self._views = views
        self._sample_ids = np.ascontiguousarray(sample_ids, dtype=np.uint64)
        self._view = np.zeros(1, dtype=np.uint64)
        self.status = np.zeros(len(sample_ids), dtype=np.int32)
        """(N,) what libjpeg-turbo last said of each image, by position; 0 is well."""
        # One scratch image per thread, not FFCV's one per batch slot: it stays in the cache.
        self._scratch_bytes = 3 * largest[0] * largest[1]
        threads = numba.config.NUMBA_NUM_THREADS
        self._decoded = np.empty((threads, self._scratch_bytes), dtype=np.uint8)
        self._padded = np.empty((threads, self._scratch_bytes), dtype=np.uint8)

    def show(self, view: int) -> None:
        """Decode this view from now on; no batch may be under way."""
        self._view[0] = view

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """Say what one decoded image takes: (S, S, 3) uint8."""
        shape = (self._views.image_size, self._views.image_size, 3)
        dtype = np.dtype("<u1")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that FFCV compiles."""
        numbers = self._views.policy.numbers()
        seed = np.uint64(self._views.seed)
        count = len(self._sample_ids)
        threads, scratch_bytes = self._decoded.shape
        view_address = self._view.ctypes.data
        ids_address = self._sample_ids.ctypes.data
        status_address = self.status.ctypes.data
        decoded_address = self._decoded.ctypes.data
        padded_address = self._padded.ctypes.data
        read = self.memory_read
        decode_jpeg = Compiler.compile(imdecode)
        resize = Compiler.compile(resize_crop)
        iterate = Compiler.get_iterator()

        def decode(positions, destination, metadata, storage):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            view = numba.carray(_address_to_pointer(view_address), 1, np.uint64)[0]
            ids = numba.carray(_address_to_pointer(ids_address), count, np.uint64)
            status = numba.carray(_address_to_pointer(status_address), count, np.int32)
            scratch = (threads, scratch_bytes)
            decoded = numba.carray(_address_to_pointer(decoded_address), scratch, np.uint8)
            padded = numba.carray(_address_to_pointer(padded_address), scratch, np.uint8)
            for place in iterate(len(positions)):
                position = positions[place]
                stored = metadata[position]
                height, width = np.int64(stored["height"]), np.int64(stored["width"])
                content = read(stored["data_ptr"], storage)
                thread = numba.get_thread_id()
                if stored["mode"] == _JPEG:
                    flat = decoded[thread, : 3 * height * width]
                    status[position] = decode_jpeg(
                        content, flat, height, width, height, width, 0, 0, 1, 1, False, False
                    )
                    image = flat.reshape(height, width, 3)
                else:
                    image = content.reshape(height, width, 3)
                top, left, box_height, box_width, flip = view_box(
                    numbers, seed, view, ids[position], height, width
                )
                output = destination[place]
                if box_height == output.shape[0] and box_width == output.shape[1]:
                    copy_box(image, top, left, flip, output)
                    continue
                if (
                    top >= 0
                    and left >= 0
                    and top + box_height <= height
                    and left + box_width <= width
                ):
                    resize(image, top, top + box_height, left, left + box_width, output)
                else:
                    window = padded[thread, : 3 * box_height * box_width]
                    window = window.reshape(box_height, box_width, 3)
                    copy_box(image, top, left, 0, window)
                    resize(window, 0, box_height, 0, box_width, output)
                if flip:
                    mirror(output)
            return destination[: len(positions)]

        # FFCV's way to ask for threads.
        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


@numba.njit(cache=True, nogil=True)
def copy_box(
    image: npt.NDArray[np.uint8],
    top: int,
    left: int,
    flip: int,
    output: npt.NDArray[np.uint8],
) -> None:
    """Copy a box of the output's size, zeros where it lies outside the image.

    Args:
        image: (height, width, 3).
        top: first row of the box, may be negative.
        left: first column of the box, may be negative.
        flip: 1 to mirror left and right.
        output: (box height, box width, 3), written whole.
    """
    height, width = image.shape[0], image.shape[1]
    rows, columns = output.shape[0], output.shape[1]
    first_row, end_row = max(0, -top), min(rows, height - top)
    first, end = max(0, -left), min(columns, width - left)
    if first_row > 0 or end_row < rows or first > 0 or end < columns:
        output[:] = 0
    for row in range(first_row, end_row):
        for column in range(first, end):
            target = columns - 1 - column if flip else column
            for channel in range(3):
                output[row, target, channel] = image[row + top, column + left, channel]


@numba.njit(cache=True, nogil=True)
def mirror(image: npt.NDArray[np.uint8]) -> None:
    """Mirror (height, width, 3) left and right, in place."""
    width = image.shape[1]
    for row in range(image.shape[0]):
        for column in range(width // 2):
            other = width - 1 - column
            for channel in range(3):
                swapped = image[row, column, channel]
                image[row, column, channel] = image[row, other, channel]
                image[row, other, channel] = swapped
