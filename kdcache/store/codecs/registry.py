"""The codecs by name. A new codec is one new file and one line here.

A codec is a subclass of `kdcache.store.codecs.codec.Codec`. It encodes and decodes rows, declares
its parameters, and can be constructed from a request or from the settings in a store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.registry import Registry, is_user_code
from kdcache.store.codecs.codec import Codec

CODECS = Registry(
    "codec",
    {
        "dense": "kdcache.store.codecs.dense:Dense",
        "int8": "kdcache.store.codecs.int8:Int8",
        "topk": "kdcache.store.codecs.topk:TopK",
        "lowrank": "kdcache.store.codecs.lowrank:LowRank",
        "sampled": "kdcache.store.codecs.sampled:Sampled",
        "float32": "kdcache.store.codecs.dense:Float32",
    },
)
"""Name -> class of the codec."""


def codec_class(name: str) -> type[Codec]:
    """Return the class of a codec by its name or `module:name`.

    Raises:
        ConfigError: if it does not exist or is not a codec.
    """
    found = CODECS.load(name)
    if not (isinstance(found, type) and issubclass(found, Codec)) or found.spelling() != name:
        raise ConfigError(
            parameter="codec",
            value=name,
            rule=(
                "a subclass of kdcache.store.codecs.codec.Codec that is defined in "
                "that module and leaves `name` out"
            ),
        )
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise ConfigError(
            parameter="codec", value=name, rule=f"a codec that defines {', '.join(missing)} too"
        )
    return found


def codec_from(settings: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[np.float32]]) -> Codec:
    """Return the codec that has these `settings` and `arrays`.

    Raises:
        CacheMismatchError: if this version of kdcache does not have the codec.
        ConfigError: if a user's codec cannot be imported.
    """
    given = dict(settings)
    name, num_classes = given.pop("codec"), given.pop("num_classes")
    if name not in CODECS and not is_user_code(str(name)):
        raise CacheMismatchError(
            f"codec is {name!r}, expected one of {', '.join(CODECS)}. Another version of kdcache "
            "wrote this store"
        )
    return codec_class(name).from_description(num_classes, given, arrays)
