"""Load timm's published weights, from safetensors only.

timm falls back to pickles if a repository has no safetensors. So this module downloads the file
itself, and timm builds the model from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from kdcache.errors import ConfigError, TeacherError
from kdcache.files import read_json
from kdcache.models.timm_models import TIMM_PREFIX, import_timm
from kdcache.progress import logger
from kdcache.teacher.class_names import IMAGENET_CLASSES, imagenet_names
from kdcache.teacher.published import (
    ClassNames,
    PublishedWeights,
    known_filter,
    require_sha256,
    unreadable,
)

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

_HUB, _FOLDER = "hf-hub:", "local-dir:"


def find_timm(spec: str) -> PublishedWeights:
    """Return the weights that are published as `timm:NAME`.

    Args:
        spec: NAME is a model of timm, with or without a tag (`resnet18.a1_in1k`), or
            `hf-hub:OWNER/REPOSITORY`, or `local-dir:FOLDER` with config.json and model.safetensors.

    Raises:
        ConfigError: if timm is not installed or knows no such model.
        TeacherError: if it has no safetensors, or they cannot be downloaded.
    """
    import_timm("teacher", spec)
    name = spec.removeprefix(TIMM_PREFIX)
    if name.startswith(_FOLDER):
        return _find_in_folder(spec, Path(name.removeprefix(_FOLDER)), source="its publisher")
    if name.startswith(_HUB):
        repository = name.removeprefix(_HUB)
        config = _fetch(repository, CONFIG_FILE)
        _fetch(repository, WEIGHTS_FILE)  # the same folder
        return _find_in_folder(spec, config.parent, source=_url(repository, WEIGHTS_FILE))
    return _find_registered(spec, name)


def _find_registered(spec: str, name: str) -> PublishedWeights:
    import timm

    arch = name.partition(".")[0]
    if not timm.is_model(arch):
        close = get_close_matches(arch, timm.list_models()) or ["resnet50"]
        known = ", ".join(f"{TIMM_PREFIX}{known}" for known in close)
        raise ConfigError(
            parameter="teacher",
            value=spec,
            rule=(
                f"a model of timm, such as {known}; timm.list_pretrained() lists those with weights"
            ),
        )
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = ", ".join(f"{TIMM_PREFIX}{known}" for known in timm.list_pretrained(f"{arch}.*"))
        raise ConfigError(
            parameter="teacher", value=spec, problem=f"{error} Expected one of {known}"
        ) from error
    if config is None or not config.has_weights:
        raise TeacherError(f"{spec} has no published weights, expected a model that has")
    tagged = f"{arch}.{config.tag}" if config.tag else arch
    file = config.file or config.hf_hub_filename or WEIGHTS_FILE
    if not file.endswith(".safetensors") or not (config.file or config.hf_hub_id):
        raise TeacherError(
            f"{spec} is published as {config.file or config.hf_hub_filename or config.url}, "
            "expected safetensors: other formats can execute code. Convert it with "
            f"safetensors.torch.save_file(state_dict, path) and give --teacher the path, with "
            f"--arch {TIMM_PREFIX}{arch}"
        )

    def load(image_size: int) -> nn.Module:
        if config.file:
            path, source = Path(file), "its publisher"
        else:
            path, source = _fetch(config.hf_hub_id, file), _url(config.hf_hub_id, file)
        size = {"img_size": image_size} if config.fixed_input_size else {}
        overlay = {"file": str(path)}
        return _create(tagged, path, source, pretrained_cfg_overlay=overlay, **size)

    about = config.to_dict()
    return _describe(f"{TIMM_PREFIX}{tagged}", about, _class_names(about, is_timm_model=True), load)


def _find_in_folder(spec: str, folder: Path, *, source: str) -> PublishedWeights:
    config_path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    for path in (config_path, weights):
        if not path.is_file():
            raise TeacherError(
                f"{path} does not exist, expected {CONFIG_FILE} and {WEIGHTS_FILE} in {folder}: "
                "no other format is read. Download it from the model's repository; "
                "convert other formats with safetensors.torch.save_file(state_dict, path)"
            )
    content = read_json(config_path)
    about = {**content, **content.get("pretrained_cfg", {})}
    for name in ("num_classes", "label_names"):  # the outer values take precedence
        about |= {name: content[name]} if name in content else {}

    def load(image_size: int) -> nn.Module:
        size = {"img_size": image_size} if about.get("fixed_input_size") else {}
        return _create(f"{_FOLDER}{folder}", weights, source, **size)

    return _describe(spec, about, _class_names(about, is_timm_model=False), load)


def _describe(
    arch: str,
    about: Mapping[str, Any],
    names: Sequence[ClassNames] | None,
    load: Callable[[int], nn.Module],
) -> PublishedWeights:
    from timm.data import resolve_data_config

    evaluated = resolve_data_config(pretrained_cfg=dict(about))
    channels, size, _ = evaluated["input_size"]
    if channels != 3:  # noqa: PLR2004  (red, green, blue)
        raise TeacherError(f"{arch} takes images of {channels} channels, expected 3")
    if evaluated["crop_mode"] != "center":
        logger.info(
            "%s was evaluated with crop mode %s; here it sees a centre crop",
            arch,
            evaluated["crop_mode"],
        )
    classes = int(about.get("num_classes", IMAGENET_CLASSES))
    return PublishedWeights(
        arch=arch,
        classes=classes,
        class_names=names,
        is_imagenet=names is not None and names == imagenet_names(),
        mean=list(evaluated["mean"]),
        std=list(evaluated["std"]),
        # As in timm's transform, the short side becomes floor(size / ratio) pixels.
        center_crop_ratio=size / math.floor(size / evaluated["crop_pct"]),
        clean_filter=known_filter(evaluated["interpolation"], arch),
        image_size=size,
        top1=None,
        load=load,
    )


def _class_names(about: Mapping[str, Any], *, is_timm_model: bool) -> Sequence[ClassNames] | None:
    """Return the names of the classes; for timm's own models their number implies them."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if labels := about.get("label_names"):
        described = about.get("label_descriptions") or {}
        return [(str(label), *described.get(label, "").split(",")) for label in labels]
    subset = infer_imagenet_subset(dict(about)) if is_timm_model else None
    if subset is None:
        return None
    if about["num_classes"] == IMAGENET_CLASSES:
        return imagenet_names()
    return [(synset,) for synset in ImageNetInfo(subset).label_class_names()]


def _create(name: str, path: Path, source: str, **options: Any) -> nn.Module:
    import timm

    try:
        model: nn.Module = timm.create_model(name, pretrained=True, **options)
    except (SafetensorError, RuntimeError) as error:
        raise unreadable(path, error, source=source) from error
    return model


def _url(repository: str, file: str) -> str:
    name, _, revision = repository.partition("@")
    return f"https://huggingface.co/{name}/resolve/{revision or 'main'}/{file}"


def _fetch(repository: str, file: str) -> Path:
    """Return the path of a file in the hub's cache; download it if it is missing."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    name, _, revision = repository.partition("@")
    try:
        try:
            found = hf_hub_download(name, file, revision=revision or None, local_files_only=True)
        except EntryNotFoundError:
            url = _url(repository, file)
            logger.info("downloading %s -> %s", url, constants.HF_HUB_CACHE)
            found = hf_hub_download(name, file, revision=revision or None)
    except (OSError, EntryNotFoundError) as error:
        raise TeacherError(
            f"{_url(repository, file)} cannot be downloaded ({type(error).__name__}) and is not in "
            f"{constants.HF_HUB_CACHE}. Copy {CONFIG_FILE} and {WEIGHTS_FILE} of {name} from a "
            "machine that reaches them into one folder and use --teacher "
            f"{TIMM_PREFIX}{_FOLDER}FOLDER"
        ) from error
    path = Path(found)
    # The cache names a large file after its sha256.
    if re.fullmatch(r"[0-9a-f]{64}", path.resolve().name):
        require_sha256(path.resolve(), path.resolve().name, source=_url(repository, file))
    return path
