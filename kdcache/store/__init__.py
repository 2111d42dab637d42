"""Store the logits of every view in a Zarr store that records its inputs."""
