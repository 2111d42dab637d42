"""The distillation losses by name. A new loss is one new file and one line here.

A loss of kdcache's own is a `kdcache.training.losses.method.Method`, which compares
log-probabilities. A loss of the user's own, `module:name`, gets logits: see
`kdcache.training.losses.user_loss`.
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
