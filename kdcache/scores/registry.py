"""The difficulty scores by name. A new score is one new file and one line here.

A score is a function `score(logits (B, C), labels (B,)) -> (B,)`. The logits are float32 tensors,
the labels int64 tensors. It returns one number per sample, higher for a harder one, which depends
on that sample alone.
"""

from __future__ import annotations

from kdcache.registry import Registry

SCORES = Registry(
    "score",
    {
        "cross_entropy": "kdcache.scores.predictions:cross_entropy",
        "entropy": "kdcache.scores.predictions:entropy",
        "margin": "kdcache.scores.predictions:margin",
        "least_confidence": "kdcache.scores.predictions:least_confidence",
        "el2n": "kdcache.scores.predictions:el2n",
    },
)
"""Name -> score function. A build stores all of them."""
