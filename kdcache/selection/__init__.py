"""Select samples: scores in, the sample ids to keep out."""
