"""Studies: many students over a grid of settings, trained in the background, with honest tables."""
