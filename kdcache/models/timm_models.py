"""The family of timm's models, `timm:NAME`. timm is an extra, and loads when it is needed."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdcache.errors import ConfigError
from kdcache.models.family import Family
from kdcache.options import Stem

TIMM_PREFIX = "timm:"
"""Prefix of a model that timm makes."""


def import_timm(option: str, value: str) -> Any:
    """Return timm.

    Args:
        option: name of the argument that needs it, for the message.
        value: what was given for it.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            parameter=option,
            value=value,
            problem="timm is not installed",
            remedy="Run: pip install 'kdcache[timm]'",
        ) from error
    return timm


class TimmFamily(Family):
    """See `kdcache.models.family.Family`."""

    description = f"{TIMM_PREFIX}NAME of timm.list_models()"

    def names(self) -> tuple[str, ...]:
        """Return none: `timm.list_models()` lists more than a thousand."""
        return ()

    def has(self, name: str) -> bool:
        """Return True for `timm:` and a model of timm.

        Raises:
            ConfigError: if timm is not installed.
        """
        if not name.startswith(TIMM_PREFIX):
            return False
        base = name.removeprefix(TIMM_PREFIX).partition(".")[0]
        return bool(import_timm("model", name).is_model(base))

    def make(
        self,
        name: str,
        *,
        num_classes: int,
        image_size: int,
        stem: Stem | None = None,  # noqa: ARG002  (no model has two stems)
    ) -> nn.Module:
        """Return a model; one with a fixed input size is made for this size."""
        timm = import_timm("model", name)
        timm_name = name.removeprefix(TIMM_PREFIX)
        about = timm.get_pretrained_cfg(timm_name)
        is_fixed = about is not None and about.fixed_input_size
        sized = {"img_size": image_size} if is_fixed else {}
        model: nn.Module = timm.create_model(timm_name, num_classes=num_classes, **sized)
        return model


FAMILY = TimmFamily()
