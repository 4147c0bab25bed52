"""Programs that made the tiny preset and the studies. Not part of the installed package."""
