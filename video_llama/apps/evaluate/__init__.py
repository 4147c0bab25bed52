"""Scores of a model on a file of questions."""
