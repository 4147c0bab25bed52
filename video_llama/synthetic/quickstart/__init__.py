"""Everything once: data, trainings, scores and a question, by `python -m`."""
