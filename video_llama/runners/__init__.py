"""The training loop, its hooks, optimiser and checkpoints."""
