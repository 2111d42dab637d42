"""In: a beton and a view number. Out: batches of final pixels, FFCV underneath and contained."""
