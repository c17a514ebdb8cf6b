"""Several runs of one plane trained at once: one base model, one pass over the same rows, weights per cell."""
