"""Codecs of every kind for a number of classes, and logits that are hard on them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdcache.store.codecs.codec import Codec
from kdcache.store.codecs.dense import Dense, Float32
from kdcache.store.codecs.int8 import Int8
from kdcache.store.codecs.lowrank import LowRank
from kdcache.store.codecs.sampled import Sampled
from kdcache.store.codecs.topk import TopK

KINDS = ("dense", "int8", "topk", "lowrank", "sampled", "float32")


def drawn_logits(rows: int, classes: int, *, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    """Return (rows, classes) float32 with a few directions in common, as a teacher's have."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((min(8, classes), classes))
    shared = rng.standard_normal((rows, len(directions))) @ directions
    own = rng.standard_normal((rows, classes))
    return (scale * (0.5 * shared + 0.3 * own)).astype(np.float32)


def make_codec(kind: str, classes: int) -> Codec:
    """Return a small codec of a kind; k = 3 and r = 5 where there are as many classes."""
    k, r = min(3, classes), min(5, classes)
    match kind:
        case "dense":
            return Dense(classes)
        case "int8":
            return Int8(classes)
        case "topk":
            return TopK(classes, k)
        case "lowrank":
            fine = min(2, r)  # both kinds of coefficients, an odd number of coarse ones
            return LowRank.fit(drawn_logits(40, classes, seed=9), k=k, r=r, fine=fine)
        case "sampled":
            return Sampled(classes, draws=20, temperature=2.0, seed=5)
    return Float32(classes)


def encoded(codec: Codec, logits_BC: np.ndarray, *, view: int = 1) -> np.ndarray:
    """Return the rows of samples 100, 101, ..."""
    return codec.encode(logits_BC, view_keys=100 + np.arange(len(logits_BC)), view=view)


def round_trip(codec: Codec, logits_BC: np.ndarray, **options: float) -> np.ndarray:
    """Encode and decode with numpy."""
    return codec.decode(encoded(codec, logits_BC), **options)


def hard_logits(largest: float, *, max_classes: int = 12) -> st.SearchStrategy[np.ndarray]:
    """Draw (B, C) float32: ties, constant rows, denormal numbers and one class among them."""
    largest = float(np.float32(largest))
    shapes = st.tuples(st.integers(1, 4), st.integers(1, max_classes))
    some = st.floats(-largest, largest, width=32)
    few = st.sampled_from([0.0, 1.0, -1.0, largest, -largest])
    return st.one_of(
        hnp.arrays(np.float32, shapes, elements=some),
        hnp.arrays(np.float32, shapes, elements=few),
    )


def below_largest(logits_BC: np.ndarray) -> np.ndarray:
    """Return how far each logit lies below its row's largest, float64."""
    exact_BC = logits_BC.astype(np.float64)
    return exact_BC.max(axis=1, keepdims=True) - exact_BC


def softmax(logits_BC: np.ndarray) -> np.ndarray:
    """Return probabilities, float64."""
    weights_BC = np.exp(-below_largest(logits_BC))
    return weights_BC / weights_BC.sum(axis=1, keepdims=True)
