"""The parameter k of codecs that keep the k largest logits of a row."""

from __future__ import annotations

from collections.abc import Mapping

from kdcache.errors import ConfigError

DEFAULT_KEPT = 10
"""Default of k."""


def kept_classes(codec: str, parameters: Mapping[str, int | float], num_classes: int) -> int:
    """Return k of a request; by default min(10, C).

    Raises:
        ConfigError: if k > C.
    """
    k = int(parameters.get("k", min(DEFAULT_KEPT, num_classes)))
    if k > num_classes:
        raise ConfigError(
            f"k of {codec} is {k}, expected at most {num_classes}, the number of classes"
        )
    return k
