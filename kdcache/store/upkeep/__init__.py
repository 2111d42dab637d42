"""Work on a finished store: inspect, repair, merge, export, reuse."""
