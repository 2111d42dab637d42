"""All stages of a recipe in one command, each only when something it depends on has changed."""
