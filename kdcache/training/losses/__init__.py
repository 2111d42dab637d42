"""The training loss: cross-entropy with the labels, and distillation from the teacher."""

from kdcache.training.losses.registry import LOSSES

__all__ = ["LOSSES"]
