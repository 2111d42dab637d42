"""Every codec by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.errors import CacheMismatchError
from kdcache.store.codecs.codec import Codec
from kdcache.store.codecs.dense import Dense, Float32
from kdcache.store.codecs.int8 import Int8
from kdcache.store.codecs.lowrank import LowRank
from kdcache.store.codecs.sampled import Sampled
from kdcache.store.codecs.topk import TopK

CODECS: dict[str, type[Codec]] = {
    codec.name: codec for codec in (Dense, Int8, TopK, LowRank, Sampled, Float32)
}


def codec_from(settings: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[np.float32]]) -> Codec:
    """Return the codec that has these `settings` and `arrays`.

    Raises:
        CacheMismatchError: if this version has none of that kind.
    """
    given = dict(settings)
    name, num_classes = given.pop("codec"), given.pop("num_classes")
    if name not in CODECS:
        raise CacheMismatchError(
            f"codec is {name!r}, expected one of {', '.join(CODECS)}. Another version of kdcache "
            "wrote this store"
        )
    if name == LowRank.name:
        basis = arrays["basis"]
        # The first version of this codec had a byte for every coefficient, and no word for it.
        fine = given.get("fine", len(basis))
        return LowRank(num_classes, given["k"], arrays["mean"], basis, fine)
    return CODECS[name](num_classes, **given)
