"""In: pixels. Out: logits, and one difficulty score per sample."""
