"""Decode views: from a stored image and a view number to final pixels.

Teacher pass, student and evaluation share this decoder. A pixel depends only on stored bytes,
placement and pixel definition. The loop over a batch is compiled once per machine and cached on
disk. It releases the GIL, and calls libjpeg-turbo's functions to decode.

Python threads run the loop, each over its share of the batch. numba's own parallel loops would take
twice as long to compile.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled
from kdcache.data.beton import Beton
from kdcache.data.jpeg_library import address_of, free_decoder, new_decoder
from kdcache.data.policy import PolicyNumbers
from kdcache.data.views import PlacementNumbers, Views, place_view, validate_seed, validate_view
from kdcache.reader.photometric_kernels import change_samples
from kdcache.reader.planes import planes_bytes
from kdcache.reader.render import U8, render_jpeg, render_raw
from kdcache.reader.render_planes import render_jpeg_planes, render_raw_planes
from kdcache.reader.resize import ResizeScratch, resize_scratch

_NUMBERS_OF_PLACEMENT = 10


class ViewDecoder:
    """Decodes views of a beton's images, batch by batch.

    Args:
        views: policy, seed, image size and pixel definition.
        beton: the file whose images are decoded.
        views_per_sample: maximum number of views per image, which are made from one decoding.
        num_workers: number of threads, at least 1. The caller's is one of them.
    """

    def __init__(
        self, views: Views, beton: Beton, *, views_per_sample: int = 1, num_workers: int = 1
    ) -> None:
        self._views = views
        self._num_workers = num_workers
        # Copy-on-write, because numba would compile everything twice if it were read-only.
        self._file = np.memmap(beton.path, dtype=np.uint8, mode="c")
        self._is_jpeg = beton.manifest.write_mode == "jpg"
        self._sizes = beton.sizes.astype(np.int64)
        self._pointers = beton.pointers.copy()
        self._view_keys = beton.view_keys
        numbers = views.policy.numbers(views.center_crop_ratio)
        self._numbers = np.array([*numbers, *views.placement_numbers()], dtype=np.float64)
        self._changes = np.array(views.policy.photometric_numbers(), dtype=np.float64)
        self._seed = validate_seed(views.seed)
        self._lengths = beton.lengths.copy()
        self._view_numbers = np.zeros(views_per_sample, dtype=np.uint64)
        self.status = np.zeros(len(beton), dtype=np.int32)
        """(N,) last status of libjpeg-turbo for each image, by position; 0: no error."""
        # One scratch image per thread stays in the processor's cache; FFCV has one per batch slot.
        height, width = (int(side) for side in beton.sizes.max(axis=0))
        size = views.image_size
        pixels = 3 * (height + 2) * (width + 2)
        decoded = planes_bytes(height, width) if views.definition == "planes" else pixels
        self._functions = np.array(
            [address_of("tjDecompress2"), address_of("tjDecompressToYUVPlanes")]
        )
        self._decoders = np.array([new_decoder() for _ in range(num_workers)], dtype=np.int64)
        weakref.finalize(self, _free, self._decoders.tolist())
        self._tables = np.empty((num_workers, 8), dtype=np.int64)
        self._decoded = np.empty((num_workers, decoded), dtype=np.uint8)
        self._padded = np.empty((num_workers, pixels), dtype=np.uint8)
        self._cut = np.empty((num_workers, int(beton.lengths.max()) + 8), dtype=np.uint8)
        self._placements = np.empty(
            (num_workers, views_per_sample, _NUMBERS_OF_PLACEMENT), dtype=np.int64
        )
        self._resize = resize_scratch(num_workers, height, width, size)
        self._resized = np.empty((num_workers, 3, size, size, 1), dtype=np.uint8)

    @property
    def scratch_bytes(self) -> int:
        """Scratch memory of all threads in bytes."""
        arrays = (self._decoded, self._padded, self._cut, self._resized, *self._resize)
        return sum(array.nbytes for array in arrays)

    def set_views(self, views: Sequence[int]) -> None:
        """Set the views to decode; no batch may be in progress."""
        self._view_numbers = np.array([validate_view(view) for view in views])

    def new_pool(self) -> ThreadPoolExecutor:
        """Return a pool for `decode`; shut it down after the loop."""
        return ThreadPoolExecutor(max(1, self._num_workers - 1), "kdcache-decoder")

    def decode(self, positions: npt.NDArray[np.int64], out: U8, pool: ThreadPoolExecutor) -> None:
        """Decode the current views of the given samples.

        Args:
            positions: (B,) in the beton; trusted.
            out: (at least B, V, S, S, 3), written.
            pool: from `new_pool`.
        """
        # Copied to one type and layout, because numba would compile again for any other.
        positions = np.array(positions, dtype=np.int64)
        workers = min(self._num_workers, len(positions))
        others = [
            pool.submit(self._decode_share, positions, worker, workers, out)
            for worker in range(1, workers)
        ]
        self._decode_share(positions, 0, workers, out)
        for other in others:
            other.result()

    def _decode_share(
        self, positions: npt.NDArray[np.int64], worker: int, workers: int, out: U8
    ) -> None:
        """Decode every `workers`-th sample of a batch, from the one with index `worker` on."""
        arguments = (
            positions,
            worker,
            workers,
            self._file,
            self._sizes,
            self._pointers,
            self._lengths,
            self._is_jpeg,
            self._views.decode == "scaled",
            self._view_keys,
            self.status,
            self._numbers,
            self._seed,
            self._view_numbers,
            self._decoders,
            self._functions,
            self._decoded,
            self._padded,
            self._cut,
            self._placements,
            *self._resize,
            out,
        )
        if self._views.definition == "planes":
            decode_samples_planes(*arguments, self._tables, self._resized)
        else:
            decode_samples(*arguments)
        if self._views.policy.changes_pixels:
            keys = self._view_keys[positions]
            change_samples(
                self._changes, self._seed, self._view_numbers, keys, worker, workers, out
            )


def _free(decoders: list[int]) -> None:
    for decoder in decoders:
        free_decoder(decoder)


@compiled(nogil=True)
def decode_samples(
    positions: npt.NDArray[np.int64],
    worker: int,
    workers: int,
    file: U8,
    sizes: npt.NDArray[np.int64],
    pointers: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    is_jpeg: bool,
    is_scaled: bool,
    keys: npt.NDArray[np.uint64],
    status: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.float64],
    seed: np.uint64,
    view_numbers: npt.NDArray[np.uint64],
    decoders: npt.NDArray[np.int64],
    functions: npt.NDArray[np.int64],
    decoded: U8,
    padded: U8,
    cut: U8,
    placements: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    weights: npt.NDArray[np.int32],
    tiles: U8,
    narrow: U8,
    destination: U8,
) -> None:
    """Decode V views of each of a worker's samples.

    Args:
        positions: (B,) of the batch, in the beton; not checked here.
        worker: index of this worker. It decodes every `workers`-th sample from this index on.
        workers: number of workers.
        file: the beton's bytes.
        sizes: (N, 2) height and width of the stored images.
        pointers: (N,) offsets of the stored images.
        lengths: (N,) sizes of the stored images in bytes.
        is_jpeg: whether the stored images are JPEG files; otherwise they are pixels.
        is_scaled: whether large boxes are decoded at a smaller scale.
        keys: (N,) view key by position.
        status: (N,) decoder status, written.
        numbers: a PolicyNumbers and a PlacementNumbers as one row.
        seed: of the views.
        view_numbers: (V,) view numbers.
        decoders: (workers,) addresses of libjpeg-turbo's decoders.
        functions: (2,) addresses of `tjDecompress2` and `tjDecompressToYUVPlanes`. They are in an
            array, because numba compiles again for each value of a number that is a constant.
        decoded: (workers, bytes) scratch for decoded pixels or planes.
        padded: (workers, bytes) scratch for a padded box.
        cut: (workers, bytes) scratch for a part of a file.
        placements: (workers, V, 10) scratch.
        starts: these four are a `ResizeScratch` for each worker.
        weights: see there.
        tiles: see there.
        narrow: see there.
        destination: (at least B, V, S, S, 3), written.
    """
    scratch = ResizeScratch(starts[worker], weights[worker], tiles[worker], narrow[worker])
    for index in range(worker, len(positions), workers):
        position = positions[index]
        height, width = sizes[position]
        start = pointers[position]
        content = file[start : start + lengths[position]]
        drawn = placements[worker, : len(view_numbers)]
        place_views(numbers, seed, view_numbers, keys[position], height, width, drawn)
        if is_jpeg:
            status[position] = render_jpeg(
                content,
                height,
                width,
                drawn,
                is_scaled,
                decoders[worker],
                functions,
                decoded[worker],
                padded[worker],
                cut[worker],
                scratch,
                destination[index],
            )
        else:
            render_raw(
                content.reshape(height, width, 3),
                drawn,
                padded[worker],
                scratch,
                destination[index],
            )


@compiled(nogil=True)
def decode_samples_planes(  # noqa: D417  (`decode_samples` describes the others)
    positions: npt.NDArray[np.int64],
    worker: int,
    workers: int,
    file: U8,
    sizes: npt.NDArray[np.int64],
    pointers: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    is_jpeg: bool,
    is_scaled: bool,
    keys: npt.NDArray[np.uint64],
    status: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.float64],
    seed: np.uint64,
    view_numbers: npt.NDArray[np.uint64],
    decoders: npt.NDArray[np.int64],
    functions: npt.NDArray[np.int64],
    decoded: U8,
    padded: U8,
    cut: U8,
    placements: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    weights: npt.NDArray[np.int32],
    tiles: U8,
    narrow: U8,
    destination: U8,
    tables: npt.NDArray[np.int64],
    resized: U8,
) -> None:
    """Do the same with the pixel definition `planes`.

    These are two functions, so that only the one in use is compiled.

    Args:
        tables: (workers, 8) scratch for addresses.
        resized: (workers, 3, S, S, 1) scratch for resized planes.
    """
    scratch = ResizeScratch(starts[worker], weights[worker], tiles[worker], narrow[worker])
    for index in range(worker, len(positions), workers):
        position = positions[index]
        height, width = sizes[position]
        start = pointers[position]
        content = file[start : start + lengths[position]]
        drawn = placements[worker, : len(view_numbers)]
        place_views(numbers, seed, view_numbers, keys[position], height, width, drawn)
        if is_jpeg:
            status[position] = render_jpeg_planes(
                content,
                height,
                width,
                drawn,
                is_scaled,
                decoders[worker],
                functions,
                tables[worker],
                decoded[worker],
                padded[worker],
                cut[worker],
                scratch,
                resized[worker],
                destination[index],
            )
        else:
            render_raw_planes(
                content.reshape(height, width, 3),
                drawn,
                decoded[worker],
                padded[worker],
                scratch,
                resized[worker],
                destination[index],
            )


@compiled(nogil=True)
def place_views(
    numbers: npt.NDArray[np.float64],
    seed: np.uint64,
    view_numbers: npt.NDArray[np.uint64],
    view_key: np.uint64,
    height: int,
    width: int,
    placements: npt.NDArray[np.int64],
) -> None:
    """Write a Placement for each view, (V, 10)."""
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
    sizes = PlacementNumbers(
        np.int64(numbers[10]),
        np.int64(numbers[11]),
        np.int64(numbers[12]),
        np.int64(numbers[13]),
    )
    for v in range(len(view_numbers)):
        place = place_view(policy, sizes, seed, view_numbers[v], view_key, height, width)
        for i in range(len(place)):
            placements[v, i] = place[i]
