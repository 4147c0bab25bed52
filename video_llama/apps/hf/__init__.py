"""The model as transformers knows models: `video_llama.hf` registers it with the Auto classes.

The classes wrap the project's own, so that answers are the chat's. `video-llama export hf` writes
folders for `from_pretrained`; each holds a stub that imports this package.
"""

from __future__ import annotations

import video_llama.common.compat

from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor

from video_llama.apps.hf.model import VideoLlamaConfig, VideoLlamaModel
from video_llama.apps.hf.processor import VideoLlamaProcessor

__all__ = ["VideoLlamaConfig", "VideoLlamaModel", "VideoLlamaProcessor"]

AutoConfig.register(VideoLlamaConfig.model_type, VideoLlamaConfig)
AutoModelForMultimodalLM.register(VideoLlamaConfig, VideoLlamaModel)
AutoProcessor.register(VideoLlamaConfig, VideoLlamaProcessor)
