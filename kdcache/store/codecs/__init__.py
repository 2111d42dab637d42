"""In: float32 logits. Out: stored rows, and logits again; one codec per file."""
