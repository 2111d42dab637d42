"""Codecs: float32 logits to stored rows and back. Each codec is a file."""

from kdcache.store.codecs.registry import CODECS

__all__ = ["CODECS"]
