"""Load teachers, and compute their logits and difficulty scores from pixels."""
