"""Files of the world hold what their scene says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from video_llama.processors.settings import AudioSettings
from video_llama.synthetic.media import SAMPLE_RATE, write_clip
from video_llama.synthetic.play import render_sound
from video_llama.synthetic.splits import sample_scene


def test_sound_of_a_clip_survives_its_encoding(tmp_path: Path) -> None:
    audio = AudioSettings(clips_per_video=2).build()
    scene = sample_scene(0, "train", 0)
    wave = render_sound(scene, 0, rate=SAMPLE_RATE)
    frames = np.zeros((16, 32, 32, 3), np.uint8)
    write_clip(tmp_path / "clip.mp4", frames, wave, fps=8, rate=SAMPLE_RATE)
    write_clip(tmp_path / "loud.mp4", frames, 0.1 * wave, fps=8, rate=SAMPLE_RATE)
    loud, quiet = (audio(tmp_path / name).values for name in ("clip.mp4", "loud.mp4"))
    assert 0.1 < (loud - quiet).mean() < 0.6  # 20 dB are 4.6 in the log, 0.5 normalised
