"""Select the samples to keep by their scores."""
