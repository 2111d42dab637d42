"""Difficulty scores: one number per sample, from logits and labels. Higher is harder."""

from kdcache.scores.registry import SCORES

__all__ = ["SCORES"]
