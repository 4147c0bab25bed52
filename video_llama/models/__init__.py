"""The parts of the model, one per file, and their composition."""
