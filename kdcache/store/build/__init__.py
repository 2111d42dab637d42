"""Build a store: plan, preflight, teacher pass, commits. All code that needs a teacher is here."""
