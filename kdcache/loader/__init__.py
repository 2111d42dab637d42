"""Load batches of pixels together with the teacher's logits for these pixels."""
