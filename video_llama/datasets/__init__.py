"""Annotations to batches."""
