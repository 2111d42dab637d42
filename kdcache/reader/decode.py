"""Decode views: from a stored image and a view number to final pixels.

Teacher pass, student and evaluation share this decoder. A pixel depends only on stored bytes, box
and output size. The loop over a batch is compiled once per machine and cached on disk. It runs in
numba's threads, and calls FFCV's C functions to decode and to resize.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled
from kdcache.data.beton import Beton
from kdcache.data.ffcv_library import address_of
from kdcache.data.policy import PolicyNumbers
from kdcache.data.views import Views, validate_seed, validate_view, view_box
from kdcache.reader.photometric_kernels import change_batch
from kdcache.reader.render import U8, render, render_jpeg


class ViewDecoder:
    """Decodes views of a beton's images, batch by batch.

    Args:
        views: policy, seed and image size.
        beton: the file whose images are decoded.
        views_per_sample: maximum number of views per image, which are made from one decoding.
    """

    def __init__(
        self,
        views: Views,
        beton: Beton,
        *,
        views_per_sample: int = 1,
    ) -> None:
        self._views = views
        self._file = np.memmap(beton.path, dtype=np.uint8, mode="r")
        self._is_jpeg = beton.manifest.write_mode == "jpg"
        self._sizes = beton.sizes.astype(np.int64)
        self._pointers = beton.pointers.copy()
        self._view_keys = beton.view_keys
        self._functions = np.array([address_of("imdecode"), address_of("resize")])
        self._numbers = np.array(views.policy.numbers(views.center_crop_ratio), dtype=np.float64)
        self._changes = np.array(views.policy.photometric_numbers(), dtype=np.float64)
        self._seed = validate_seed(views.seed)
        self._lengths = beton.lengths.copy()
        self._view_numbers = np.zeros(views_per_sample, dtype=np.uint64)
        self.status = np.zeros(len(beton), dtype=np.int32)
        """(N,) last status of libjpeg-turbo for each image, by position; 0: no error."""
        # One scratch image per thread stays in the processor's cache; FFCV has one per batch slot.
        threads = numba.config.NUMBA_NUM_THREADS
        scratch_bytes = 3 * int(beton.sizes.max(axis=0).prod(dtype=np.int64))
        self._decoded = np.empty((threads, scratch_bytes), dtype=np.uint8)
        self._padded = np.empty((threads, scratch_bytes), dtype=np.uint8)
        self._cut = np.empty((threads, int(beton.lengths.max()) + 8), dtype=np.uint8)
        self._boxes = np.empty((threads, views_per_sample, 5), dtype=np.int64)

    @property
    def scratch_bytes(self) -> int:
        """Scratch memory of all threads in bytes."""
        return self._decoded.nbytes + self._padded.nbytes + self._cut.nbytes

    def set_views(self, views: Sequence[int]) -> None:
        """Set the views to decode; no batch may be in progress."""
        self._view_numbers = np.array([validate_view(view) for view in views])

    def decode(self, positions: npt.NDArray[np.int64], out: U8) -> None:
        """Decode the current views of the given samples.

        Args:
            positions: (B,) in the beton; trusted.
            out: (at least B, V, S, S, 3), written.
        """
        # Copied to one type and layout, because numba would compile again for any other.
        positions = np.array(positions, dtype=np.int64)
        decode_batch(
            positions,
            self._file,
            self._sizes,
            self._pointers,
            self._lengths,
            self._is_jpeg,
            self._view_keys,
            self.status,
            self._numbers,
            self._seed,
            self._view_numbers,
            self._decoded,
            self._padded,
            self._cut,
            self._boxes,
            self._functions,
            out,
        )
        if self._views.policy.changes_pixels:
            keys = self._view_keys[positions]
            change_batch(self._changes, self._seed, self._view_numbers, keys, out)


@compiled(parallel=True, nogil=True)
def decode_batch(
    positions: npt.NDArray[np.int64],
    file: U8,
    sizes: npt.NDArray[np.int64],
    pointers: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    is_jpeg: bool,
    keys: npt.NDArray[np.uint64],
    status: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.float64],
    seed: np.uint64,
    view_numbers: npt.NDArray[np.uint64],
    decoded: U8,
    padded: U8,
    cut: U8,
    boxes: npt.NDArray[np.int64],
    functions: npt.NDArray[np.int64],
    destination: U8,
) -> None:
    """Decode V views per sample of a batch; threads work on different samples.

    The arguments are a flat list, because numba's parallel loops take no tuples of arrays.

    Args:
        positions: (B,) in the beton; not checked here.
        file: the beton's bytes.
        sizes: (N, 2) height and width of the stored images.
        pointers: (N,) offsets of the stored images.
        lengths: (N,) sizes of the stored images in bytes.
        is_jpeg: whether the images are JPEG files, or pixels.
        keys: (N,) view key by position.
        status: (N,) decoder status, written.
        numbers: a PolicyNumbers as one row.
        seed: of the views.
        view_numbers: (V,) view numbers.
        decoded: (threads, bytes) scratch for decoded pixels.
        padded: (threads, bytes) scratch for a padded box.
        cut: (threads, bytes) scratch for a part of a file.
        boxes: (threads, V, 5) scratch.
        functions: addresses of FFCV's `imdecode` and `resize`. They are in an array, because numba
            compiles again for each value of a number that is a constant.
        destination: (at least B, V, S, S, 3), written.
    """
    imdecode, resize = functions[0], functions[1]
    for index in numba.prange(len(positions)):
        thread = numba.get_thread_id()
        position = positions[index]
        height, width = sizes[position]
        start = pointers[position]
        content = file[start : start + lengths[position]]
        drawn = boxes[thread, : len(view_numbers)]
        draw_boxes(numbers, seed, view_numbers, keys[position], height, width, drawn)
        if is_jpeg:
            status[position] = render_jpeg(
                content,
                height,
                width,
                drawn,
                decoded[thread],
                padded[thread],
                cut[thread],
                imdecode,
                resize,
                destination[index],
            )
        else:
            image = content.reshape(height, width, 3)
            for v in range(len(view_numbers)):
                render(image, drawn[v], 0, 1, padded[thread], resize, destination[index, v])


@compiled(nogil=True)
def draw_boxes(
    numbers: npt.NDArray[np.float64],
    seed: np.uint64,
    view_numbers: npt.NDArray[np.uint64],
    view_key: np.uint64,
    height: int,
    width: int,
    boxes: npt.NDArray[np.int64],
) -> None:
    """Write the boxes of the views, (V, 5): top, left, height, width, flip."""
    policy = PolicyNumbers(
        np.int64(numbers[0]),
        np.int64(numbers[1]),
        numbers[2],
        numbers[3],
        numbers[4],
        numbers[5],
        numbers[6],
        numbers[7],
        numbers[8] > 0,
        numbers[9],
    )
    for v in range(len(view_numbers)):
        box = view_box(policy, seed, view_numbers[v], view_key, height, width)
        for i in range(5):
            boxes[v, i] = box[i]
