"""The frozen parts of the tiny preset, each trained apart on the synthetic world."""
