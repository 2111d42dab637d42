"""What is done to a finished store: inspect, repair, merge, export, reuse."""
