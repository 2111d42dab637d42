"""Studies: train a grid of students in background processes, and tabulate the results."""
