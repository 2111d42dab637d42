"""Load teachers, and compute their logits from pixels."""
