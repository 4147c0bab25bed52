"""Work on a data set before training: checking and packing."""
