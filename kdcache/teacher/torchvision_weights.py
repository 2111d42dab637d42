"""torchvision's published weights, read without executing anything.

torchvision publishes pickles. One is opened only after its sha256 agreed with the digest in its
file name, and then by torch's reader of tensors, which refuses everything else. The model is built
by torchvision's own function for these weights: some of them change more than the tensors.
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
from kdcache.files import file_lock
from kdcache.models.registry import torchvision_classifiers
from kdcache.progress import logger
from kdcache.teacher.class_names import IMAGENET_CLASSES
from kdcache.teacher.published import PublishedWeights, require_sha256, unreadable

MIN_DIGEST_DIGITS = 8
"""Of the sha256 in a file's name; torchvision's names have eight."""


def find_torchvision(spec: str) -> PublishedWeights | None:
    """Return what is published as `MODEL`, its best weights, or as `MODEL.ENTRY`.

    Raises:
        ConfigError: if the model has no such entry; lists those that it has.
        TeacherError: if the entry is no classifier.
    """
    name, _, entry_name = spec.partition(".")
    if name not in torchvision_classifiers():
        return None
    entries = models.get_model_weights(name)
    if entry_name and entry_name not in entries.__members__:
        known = ", ".join(f"{name}.{known}" for known in entries.__members__)
        raise ConfigError(f"--teacher is {spec}, expected one of {known}")
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
        image_size=evaluated.crop_size[0],
        top1=metrics.get("acc@1"),
        load=lambda _image_size: _load(name, entry),
    )


def _load(name: str, entry: WeightsEnum) -> nn.Module:
    path = _bring(entry.url)
    try:
        with _tensors_read_from(path, entry):
            model: nn.Module = models.get_model(name, weights=entry)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise unreadable(path, error, source=entry.url) from error
    return model


@contextmanager
def _tensors_read_from(path: Path, entry: WeightsEnum) -> Iterator[None]:
    """Let torchvision's function for these weights get their tensors from our reader.

    Its own would unpickle whatever the file holds.
    """

    def read(**_options: Any) -> dict[str, Any]:
        tensors: dict[str, Any] = torch.load(
            path,
            map_location="cpu",
            weights_only=True,
            mmap=zipfile.is_zipfile(path),  # files of before torch 1.6 cannot be mapped
        )
        return tensors

    entry.get_state_dict = read
    try:
        yield
    finally:
        del entry.get_state_dict


def _bring(url: str) -> Path:
    """Return the path of a published file in torch hub's folder, downloaded where it is missing."""
    name = Path(urlparse(url).path).name
    digest = torch.hub.HASH_REGEX.search(name)
    if digest is None or len(digest[1]) < MIN_DIGEST_DIGITS:
        raise TeacherError(
            f"{url} names no sha256, expected one in the file's name: what cannot be checked is "
            "not opened. Convert it with safetensors.torch.save_file(state_dict, path) and give "
            "--teacher the path, with --arch"
        )
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.exists():
        # Of several ranks one downloads.
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
            f"{url} cannot be reached ({error}) and {path} does not exist. Bring {path.name} from "
            f"a machine that reaches it, and put it into {path.parent}"
        ) from error
    except RuntimeError as error:
        raise TeacherError(
            f"{url} sends something else than {path.name}: {error}. Run again, or bring that file "
            f"from elsewhere and put it into {path.parent}"
        ) from error
