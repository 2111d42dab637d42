"""What fills a store: plan, preflight, teacher pass, commits; all that needs a teacher or a reader."""
