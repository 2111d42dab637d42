"""In: a source of images. Out: betons with manifests, and the definition of a view."""
