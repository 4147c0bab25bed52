"""Weight files: names, reading, loading into a model, saving."""
