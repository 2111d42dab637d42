"""Define the files of a store: their keys, their contents, and their sizes."""
