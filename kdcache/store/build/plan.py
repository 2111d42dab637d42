"""What a build is to make: the manifest, and the shards that are still missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kdcache.data.beton import Beton
from kdcache.data.policy import Policy
from kdcache.errors import ConfigError
from kdcache.options import BuildLogitsOptions
from kdcache.processes import torchrun_world
from kdcache.selection.subset import Subset
from kdcache.store.codecs.choice import require_fits
from kdcache.store.codecs.request import CodecRequest
from kdcache.store.format.layout import open_group
from kdcache.store.format.location import Location, exists, open_place
from kdcache.store.manifest import FORMAT_VERSION, StoreManifest, digest_of
from kdcache.store.writer import StoreWriter
from kdcache.teacher.ensemble import Ensemble
from kdcache.workspace import Workspace

LARGEST_SHARD_ROWS = 4096
"""4096 rows of 1000 float16 are 8 MiB: few files, and little is lost when a build is killed."""

VIEWS_AT_ONCE = 9
"""Views of one block of rows that come from one decoding, and whose answers are kept in memory
together: the clean one and the 8 that are usual."""

FEWEST_SHARDS = 16
"""Small data sets get smaller shards, so that progress is kept there too."""


class Shard(NamedTuple):
    """A block of rows of one view that is still to be made."""

    view: int
    number: int
    rows: npt.NDArray[np.int64]
    """Sample ids."""


class Part(NamedTuple):
    """Which of the blocks of rows this process makes: every `of`-th, from `number`."""

    number: int = 0
    of: int = 1
    others_run: bool = False
    """The other parts are being made now, so that they can be waited for."""

    @property
    def is_whole(self) -> bool:
        """Whether there are no other parts."""
        return self.of == 1

    @classmethod
    def parse(cls, text: str | None, environment: Mapping[str, str]) -> Part:
        """Read `2/4`, the second of four parts; None is this process's rank of torchrun, or all.

        Raises:
            ConfigError: if it is no such text, or beside torchrun.
        """
        world = torchrun_world(environment)
        if world is not None:
            if text is not None:
                raise ConfigError(
                    f"--part is {text}, but torchrun already makes this process part "
                    f"{world.rank + 1}/{world.world_size}. Leave the option out"
                )
            return cls(world.rank, world.world_size, others_run=True)
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--part is {text!r}, expected one such as 2/4: the second of four")
        return cls(int(match[1]) - 1, int(match[2]))


def rows_of_views(
    options: BuildLogitsOptions, workspace: Workspace, beton: Beton
) -> npt.NDArray[np.int64]:
    """Return the sample ids that the views from 1 cover.

    Raises:
        CacheMismatchError: if the subset was selected from other data.
    """
    path = workspace.require_subset(options.subset or "full")
    if path is None:
        return beton.sample_ids
    subset = Subset.load_of(path, beton.manifest.fingerprint)
    beton.positions(subset.sample_ids)
    return subset.sample_ids


def wanted_manifest(
    options: BuildLogitsOptions,
    beton: Beton,
    teacher: Ensemble,
    device: torch.device,
    location: Location,
    rows: npt.NDArray[np.int64],
) -> StoreManifest:
    """Say what the store is to be made from; what the user leaves open follows a store there."""
    data = beton.manifest
    found = None
    if exists(location) and not options.overwrite:
        _, found = open_group(open_place(location, read_only=True), path=str(location))
    codec = CodecRequest.parse(options.codec)
    require_fits(codec, data.samples, data.classes)
    default_batch = found.batch_size if found else (256 if device.type == "cuda" else 128)
    batch_size = options.batch_size or default_batch
    return StoreManifest(
        format_version=FORMAT_VERSION,
        data_fingerprint=data.fingerprint,
        samples=data.samples,
        classes=data.classes,
        class_names=data.class_names,
        rows=len(rows),
        rows_digest=digest_of(rows),
        teacher=teacher.name,
        teacher_arch=teacher.arch,
        teacher_digest=teacher.digest,
        teachers=[member.spec for member in teacher.members],
        ensemble=teacher.mode,
        policy=str(Policy.parse(options.policy or data.policy)),
        view_seed=options.view_seed,
        image_size=options.image_size or data.image_size,
        teacher_size=teacher.image_size,
        clean_share=teacher.clean_share,
        mean=[member.mean for member in teacher.members],
        std=[member.std for member in teacher.members],
        codec=str(codec),
        precision=options.precision or ("fp16" if device.type == "cuda" else "fp32"),
        shard_rows=found.shard_rows if found else _shard_rows(data.samples, batch_size),
        batch_size=batch_size,
        **machine_conditions(device),
    )


def machine_conditions(device: torch.device) -> dict[str, Any]:
    """Return the fields of a manifest that this machine decides, and not the user."""
    versions = {name: version(name) for name in ("kdcache", "torch", "ffcv")}
    return {"device": _device_name(device), "versions": versions}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu (threads: {torch.get_num_threads()})"  # their number decides the last bits


def _shard_rows(samples: int, batch_size: int) -> int:
    """Return the rows of a shard: whole batches, so that none crosses a shard."""
    rows = min(LARGEST_SHARD_ROWS, -(-samples // FEWEST_SHARDS))
    return max(1, rows // batch_size) * batch_size


def missing_work(writer: StoreWriter, views: Iterable[int], part: Part) -> list[Shard]:
    """Return the shards of some views that this part of the build is still to make."""
    size = writer.manifest.shard_rows
    work = []
    for view in views:
        ids = writer.sample_ids(view)
        work += [
            Shard(view, number, ids[number * size : (number + 1) * size])
            for number in writer.missing_shards(view)
            if number % part.of == part.number
        ]
    return work


def view_groups(work: list[Shard]) -> list[tuple[Shard, list[int]]]:
    """Return one shard of each block of rows, with the views that are made of it together.

    Views of the same rows come from one decoding of each image.
    """
    blocks: dict[bytes, list[Shard]] = {}
    for shard in work:
        blocks.setdefault(shard.rows.tobytes(), []).append(shard)
    return [
        (block[0], [shard.view for shard in block[first : first + VIEWS_AT_ONCE]])
        for block in blocks.values()
        for first in range(0, len(block), VIEWS_AT_ONCE)
    ]
