"""Codecs: float32 logits to stored rows and back. Each codec is a file."""
