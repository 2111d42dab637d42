"""Read and write the keys of a store, which is a folder or the URL of an object store.

On a local disk a file is flushed before it gets its name, and then its folder is flushed. So an
existing file is complete, even after a power cut. On an object store a PUT is atomic.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from kdcache.errors import ConfigError, KDCacheError
from kdcache.files import make_directory, replace_atomically

Location = Path | str
"""A folder is a Path, a URL (s3://, gs://, memory://, ...) a string."""

ROOT_KEY = "zarr.json"
"""Key of the manifest, the first key of a store."""

PARTIAL_SUFFIX = ".partial"
"""Suffix of a file that is being written."""

_MAX_REQUESTS = 64
"""Maximum number of concurrent requests to an object store."""


def parse_location(given: Path | str) -> Location:
    """Return a URL unchanged, and anything else as a Path."""
    return given if isinstance(given, str) and "://" in given else Path(given)


class DurableStore(LocalStore):
    """A local Zarr store that flushes each file to the disk before it gets its name."""

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        # zarr creates the folder on first use, without a flush, in code that differs between its
        # versions. Create and flush it here instead.
        if not read_only:
            make_directory(self.root)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a key atomically."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a key if it does not exist. Only one process writes at a time."""
        if not await self.exists(key):
            await self.set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write a key atomically."""
        self._check_writable()
        path = self.root / key
        try:
            with replace_atomically(path) as partial:
                partial.write_bytes(value.as_buffer_like())
        except OSError as error:
            # The error of a full disk does not name the file.
            raise OSError(error.errno, f"{error.strerror}, writing", str(path)) from error


class RemoteStore(FsspecStore):
    """A Zarr store at a URL that converts errors of the client library.

    Clients raise their own exceptions for missing credentials or an unreachable endpoint. This
    class does not import the clients, so it converts every exception that is not an OSError.
    """

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a key's bytes, or None if the key does not exist."""
        with self._named_failures(key):
            return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        """Write a key atomically."""
        with self._named_failures(key):
            await super().set(key, value, byte_range)

    async def delete(self, key: str) -> None:
        """Remove a key."""
        with self._named_failures(key):
            await super().delete(key)

    async def exists(self, key: str) -> bool:
        """Return whether a key exists."""
        with self._named_failures(key):
            return await super().exists(key)

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield every key that starts with a prefix."""
        with self._named_failures(prefix):
            async for key in super().list_prefix(prefix):
                yield key

    @contextmanager
    def _named_failures(self, key: str) -> Iterator[None]:
        try:
            yield
        except (OSError, KDCacheError):
            raise
        except Exception as error:
            raise KDCacheError(
                f"{display_name(self)} cannot be reached for {key or 'its keys'}: "
                f"{type(error).__name__}: {error}. Check the URL, the endpoint and the credentials "
                "that its client reads from the environment"
            ) from error


def open_zarr_store(location: Location, *, read_only: bool) -> Store:
    """Return the Zarr store of a location, which may be empty.

    Raises:
        ConfigError: if the URL needs a package that is not installed; names it.
    """
    if isinstance(location, Path):
        return DurableStore(location, read_only=read_only)
    try:
        # Disable fsspec's cache of listings: it does not see the writes of other processes.
        return RemoteStore.from_url(
            location, read_only=read_only, storage_options={"use_listings_cache": False}
        )
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{location} cannot be opened: {error}. "
            "Expected a folder, or a URL that fsspec knows: pip install 'kdcache[s3]' for s3://, "
            "'kdcache[gs]' for gs://"
        ) from error


def display_name(zarr_store: Store) -> str:
    """Return the path or URL of a store, as a user writes it."""
    if isinstance(zarr_store, FsspecStore):
        return str(zarr_store.fs.unstrip_protocol(zarr_store.path))
    return str(zarr_store.root if isinstance(zarr_store, LocalStore) else zarr_store)


def exists(location: Location) -> bool:
    """Return whether a store exists at a location, finished or not."""
    if isinstance(location, Path):
        return (location / ROOT_KEY).is_file()
    # Read the key: for an unreachable host, the exists() of some clients returns False.
    return read_key(open_zarr_store(location, read_only=True), ROOT_KEY) is not None


def has_key(zarr_store: Store, key: str) -> bool:
    """Return whether a key exists."""
    return bool(sync(zarr_store.exists(key)))


def read_key(zarr_store: Store, key: str) -> bytes | None:
    """Return the bytes of a key, or None if it does not exist."""
    found = sync(zarr_store.get(key, default_buffer_prototype()))
    return None if found is None else found.to_bytes()


def read_keys(zarr_store: Store, keys: Sequence[str]) -> list[npt.NDArray[np.uint8] | None]:
    """Return the bytes of several keys, read concurrently; None for a key that does not exist."""
    return _gather(zarr_store, keys, None)


def read_starts(
    zarr_store: Store, keys: Sequence[str], count: int
) -> list[npt.NDArray[np.uint8] | None]:
    """Return the first bytes of several keys, at most `count` of each; None for a missing key."""
    if isinstance(zarr_store, LocalStore):
        # A thread for each file, as in `LocalStore.get`, costs ten times as much as the read.
        return [_local_start(zarr_store.root / key, count) for key in keys]
    return _gather(zarr_store, keys, RangeByteRequest(0, count))


def _local_start(path: Path, count: int) -> npt.NDArray[np.uint8] | None:
    try:
        with path.open("rb", buffering=0) as file:
            return np.frombuffer(file.read(count), dtype=np.uint8)
    except FileNotFoundError:
        return None


def _gather(
    zarr_store: Store, keys: Sequence[str], byte_range: ByteRequest | None
) -> list[npt.NDArray[np.uint8] | None]:
    async def collect() -> list[npt.NDArray[np.uint8] | None]:
        limit = asyncio.Semaphore(_MAX_REQUESTS)

        async def one(key: str) -> npt.NDArray[np.uint8] | None:
            async with limit:
                found = await zarr_store.get(key, default_buffer_prototype(), byte_range)
            return None if found is None else np.asarray(found.as_numpy_array()).view(np.uint8)

        return list(await asyncio.gather(*map(one, keys)))

    return sync(collect())


def write_key(zarr_store: Store, key: str, content: bytes | npt.NDArray[np.uint8]) -> None:
    """Write a key atomically."""
    array = np.frombuffer(content, dtype=np.uint8) if isinstance(content, bytes) else content
    sync(zarr_store.set(key, default_buffer_prototype().buffer.from_array_like(array)))


def delete_key(zarr_store: Store, key: str) -> None:
    """Delete a key if it exists."""
    sync(zarr_store.delete(key))


def list_keys(zarr_store: Store, prefix: str = "", *, partials: bool = False) -> list[str]:
    """Return every key that starts with a prefix, sorted.

    Args:
        zarr_store: the Zarr store.
        prefix: start of the keys.
        partials: include partially written files.
    """

    async def collect() -> list[str]:
        return [key async for key in zarr_store.list_prefix(prefix)]

    return sorted(key for key in sync(collect()) if partials or not key.endswith(PARTIAL_SUFFIX))


def size_bytes(location: Location) -> int:
    """Return the total bytes at a location, without partially written files."""
    if isinstance(location, Path):
        files = (path for path in location.rglob("*") if path.suffix != PARTIAL_SUFFIX)
        # Another process may have renamed or deleted a file since it was listed.
        return sum(path.stat().st_size for path in files if path.is_file())
    return int(sync(open_zarr_store(location, read_only=True).getsize_prefix("")))
