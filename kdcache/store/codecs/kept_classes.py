"""How many of the largest logits of a row a codec keeps."""

from __future__ import annotations

from collections.abc import Mapping

from kdcache.errors import ConfigError

DEFAULT_KEPT = 10


def kept_classes(codec: str, parameters: Mapping[str, int | float], num_classes: int) -> int:
    """Return k of a request, 10 or C when it is left out.

    Raises:
        ConfigError: if it is more than C.
    """
    k = int(parameters.get("k", min(DEFAULT_KEPT, num_classes)))
    if k > num_classes:
        raise ConfigError(
            f"k of {codec} is {k}, expected at most {num_classes}, the number of classes"
        )
    return k
