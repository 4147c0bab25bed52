"""The `video-llama` program."""
