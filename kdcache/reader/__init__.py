"""Decode views of a beton's images into batches of final pixels."""
