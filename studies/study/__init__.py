"""Trains the tiny preset again and again, and compares what it learns."""
