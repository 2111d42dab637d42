"""The distillation losses by name. A new loss is one new file and one line here.

A built-in loss is a `kdcache.training.losses.method.Method` and compares log-probabilities. A
user's loss, `module:name`, gets logits: see `kdcache.training.losses.user_loss`.
"""

from __future__ import annotations

from kdcache.registry import Registry

LOSSES = Registry(
    "loss",
    {
        "kd": "kdcache.training.losses.hinton:Kd",
        "dkd": "kdcache.training.losses.dkd:Dkd",
        "dist": "kdcache.training.losses.dist:Dist",
    },
)
"""Name -> class of the loss."""
