"""What every test relies on."""

from __future__ import annotations

import os

# Before torch is imported: the tests run side by side, one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Some virtual machines announce the processor's matrix unit (AMX) and fail on its instructions.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import video_llama.compat
