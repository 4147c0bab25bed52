"""Everything about one GPU in ten minutes: `python -m benchmarks.gpu`."""
