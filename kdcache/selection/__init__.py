"""In: scores. Out: the sample ids to keep."""
