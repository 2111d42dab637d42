"""The difficulty scores by name. A new score is one new file and one line here.

A score is a function `score(logits (B, C), labels (B,)) -> (B,)`. The logits are a float32 tensor,
the labels an int64 tensor. It returns one number per sample, higher for harder samples. The number
must depend on that sample only, not on the others of the batch.
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
