"""Difficulty scores: one number per sample, from logits and labels. Higher is harder."""
