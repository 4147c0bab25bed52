"""The chat engine: files and questions to answers. Knows no user interface."""
