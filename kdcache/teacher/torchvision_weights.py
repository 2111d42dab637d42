"""Load torchvision's published weights without executing code from the file.

torchvision publishes pickles. A file is opened only if its sha256 matches the digest in its name,
and only with torch.load(weights_only=True). torchvision's own function for the weights builds the
model, because some weights change more than the tensors.
"""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torch.hub
from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from kdcache.errors import ConfigError, TeacherError
from kdcache.locks import file_lock
from kdcache.models.torchvision_models import torchvision_classifiers
from kdcache.progress import logger
from kdcache.teacher.class_names import IMAGENET_CLASSES
from kdcache.teacher.published import PublishedWeights, known_filter, require_sha256, unreadable

MIN_DIGEST_DIGITS = 8
"""Minimum number of hex digits of the sha256 in a file's name; torchvision uses eight."""


def find_torchvision(spec: str) -> PublishedWeights | None:
    """Return the weights published as `MODEL.ENTRY`, or the default weights of `MODEL`.

    Raises:
        ConfigError: if the model has no such entry; lists its entries.
        TeacherError: if the entry is not a classifier.
    """
    name, _, entry_name = spec.partition(".")
    if name not in torchvision_classifiers():
        return None
    entries = models.get_model_weights(name)
    if entry_name and entry_name not in entries.__members__:
        known = ", ".join(f"{name}.{known}" for known in entries.__members__)
        raise ConfigError(parameter="teacher", value=spec, rule=f"one of {known}")
    entry = entries[entry_name] if entry_name else entries.DEFAULT
    categories = entry.meta.get("categories")
    if not categories:
        raise TeacherError(f"{spec} has no classes, expected the weights of a classifier")
    evaluated = entry.transforms()
    metrics = entry.meta.get("_metrics", {}).get("ImageNet-1K", {})
    return PublishedWeights(
        arch=f"{name}.{entry.name}",
        classes=len(categories),
        class_names=[(category,) for category in categories],
        is_imagenet=bool(metrics) and len(categories) == IMAGENET_CLASSES,
        mean=list(evaluated.mean),
        std=list(evaluated.std),
        center_crop_ratio=evaluated.crop_size[0] / evaluated.resize_size[0],
        clean_filter=known_filter(evaluated.interpolation.value, spec),
        image_size=evaluated.crop_size[0],
        top1=metrics.get("acc@1"),
        load=lambda _image_size: _load(name, entry),
    )


def _load(name: str, entry: WeightsEnum) -> nn.Module:
    path = _fetch(entry.url)
    try:
        with _safe_state_dict(path, entry):
            model: nn.Module = models.get_model(name, weights=entry)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise unreadable(path, error, source=entry.url) from error
    return model


@contextmanager
def _safe_state_dict(path: Path, entry: WeightsEnum) -> Iterator[None]:
    """Make torchvision load these weights with `weights_only=True`; its own reader unpickles."""

    def read(**_options: Any) -> dict[str, Any]:
        tensors: dict[str, Any] = torch.load(
            path,
            map_location="cpu",
            weights_only=True,
            mmap=zipfile.is_zipfile(path),  # files from before torch 1.6 cannot be mapped
        )
        return tensors

    entry.get_state_dict = read
    try:
        yield
    finally:
        del entry.get_state_dict


def _fetch(url: str) -> Path:
    """Return the path of a file in torch hub's folder; download it if it is missing."""
    name = Path(urlparse(url).path).name
    digest = torch.hub.HASH_REGEX.search(name)
    if digest is None or len(digest[1]) < MIN_DIGEST_DIGITS:
        raise TeacherError(
            f"{url} names no sha256, expected one in the file's name: a file that cannot be "
            "checked is not opened. Convert it with safetensors.torch.save_file(state_dict, path) "
            "and give --teacher the path, with --arch"
        )
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.exists():
        # One of several ranks downloads.
        with file_lock(path.with_name(f".{name}.lock"), purpose="download", wait=True):
            if not path.exists():
                _download(url, path, digest[1])
    require_sha256(path, digest[1], source=url)
    return path


def _download(url: str, path: Path, digest: str) -> None:
    logger.info("downloading %s -> %s", url, path)
    try:
        torch.hub.download_url_to_file(url, str(path), digest, progress=sys.stderr.isatty())
    except OSError as error:
        raise TeacherError(
            f"{url} cannot be reached ({error}) and {path} does not exist. Copy {path.name} from "
            f"a machine that reaches it into {path.parent}"
        ) from error
    except RuntimeError as error:
        raise TeacherError(
            f"{url} returned another file than {path.name}: {error}. Run again, or copy that file "
            f"from another machine into {path.parent}"
        ) from error
