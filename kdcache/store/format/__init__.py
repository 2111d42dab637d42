"""The files of a store: where they lie, what they are called, and how bytes are counted."""
