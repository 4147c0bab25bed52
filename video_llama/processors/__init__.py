"""From a media file or a caption to what the model takes: decoding, transforms, spectrograms.

`settings` describes every processor without torch; the other modules are imported when built.
"""
