"""The chat page: the engine in a browser, and as an API. Gradio is imported by `serve` only."""
