"""In: batches with the teacher's answers. Out: a student, its checkpoints and its metrics."""
