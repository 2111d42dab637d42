"""`kdcache run`: run every step of a pipeline whose options or inputs have changed."""
