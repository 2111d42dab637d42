"""In: logits of every view. Out: a Zarr store that says what it was made from."""
