"""The cards of files and the state of a workspace."""
