"""Decide which stem the model in a weights file has: small or standard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdcache.errors import ConfigError
from kdcache.models.family import Shape
from kdcache.models.registry import default_stem, has_hidden_stem, has_two_stems, stem_of_shapes
from kdcache.options import Stem


def stem_of_file(
    path: Path,
    arch: str,
    *,
    given: Stem | None,
    stated: Stem | None,
    shapes: Mapping[str, Shape],
    image_size: int,
) -> Stem | None:
    """Return the stem of the model in a weights file; None if the model has only one.

    Args:
        path: the file, for messages.
        arch: name of its model.
        given: value of `--stem`.
        stated: what its metadata state.
        shapes: name -> shape of its tensors.
        image_size: height and width of the images, in pixels. It decides only for tensors that fit
            neither stem, which `fill_model` then refuses.

    Raises:
        ConfigError: if `given`, `stated` and the tensors disagree, or nothing tells the stem of a
            model whose two stems have the same tensors.
    """
    if not has_two_stems(arch):
        return given  # make_model refuses it
    seen = stem_of_shapes(arch, shapes)
    known = stated or seen
    if given and known and given != known:
        raise ConfigError(
            parameter="stem",
            value=given,
            problem=f"{path} is of a model with the {known} stem",
            remedy="Leave the option out",
        )
    stem = given or known
    if stem is None and has_hidden_stem(arch):
        raise ConfigError(
            f"--stem is not given, expected small or standard for the {arch} in {path}: the two "
            "differ only in strides, so the file does not tell. small keeps the size of the image "
            "in the first layers, as kdcache trains models up to 64 px; standard is torchvision's "
            "own",
            parameter="stem",
        )
    return stem or default_stem(arch, image_size)
