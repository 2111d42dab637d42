"""Pack images from a source into betons with manifests, and define what a view is."""
