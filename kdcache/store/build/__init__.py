"""Fill a store: everything that needs a teacher or a reader."""
