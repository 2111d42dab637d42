"""In: a reader and a store. Out: batches of pixels with the teacher's answer to them."""
