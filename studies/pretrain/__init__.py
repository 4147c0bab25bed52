"""Pre-training of the frozen parts of the tiny preset, each by itself, on the synthetic world."""
