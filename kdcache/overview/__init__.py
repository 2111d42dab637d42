"""What there is: the card of a file, and the state of a workspace."""
