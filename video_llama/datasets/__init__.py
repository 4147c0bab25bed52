"""Annotations to batches. The data sets register here; none of their files imports torch."""

from video_llama.datasets import (  # noqa: F401 (fills DATASETS; a new data set adds its line)
    audio_caption,
    cc_sbu_align,
    llava_instruct,
    webvid,
    webvid_instruct,
)
