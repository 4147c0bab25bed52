"""Sound is decoded and resampled as torchaudio does it, in bounded memory, at its true time."""

from __future__ import annotations

import resource
import struct
import tracemalloc
import wave
import zlib
from pathlib import Path

import video_llama.common.compat

import av
import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from tests import media
from video_llama.processors import waveform
from video_llama.processors.media import NoSoundError
from video_llama.processors.waveform import Sound, open_sound
from video_llama.types import MediaError


def whole(sound: Sound, rate: int | None = None) -> torch.Tensor:
    rate = rate or sound.rate
    return sound.read([(0, sound.resampled_length(rate))], rate=rate)[0]


@pytest.mark.parametrize(
    ("codec", "error"),
    [
        *[("pcm_u8", 1 / 128), ("pcm_s16le", 1 / 32768), ("pcm_s24le", 1e-6), ("pcm_s32le", 1e-9)],
        *[("pcm_f32le", 0.0), ("pcm_f64le", 0.0)],
    ],
)
def test_every_sample_format_gives_the_same_floats(
    tmp_path: Path, codec: str, error: float
) -> None:
    tone = media.tone(0.5, channels=2)
    sound = open_sound(media.write_audio(tmp_path / "a.wav", tone, codec=codec))
    assert (sound.rate, sound.num_channels, sound.num_samples) == (16000, 2, 8000)
    assert (whole(sound) - torch.from_numpy(tone)).abs().max() <= error


def test_sixteen_bit_samples_are_exact_fractions_of_32768(tmp_path: Path) -> None:
    values = np.array([[-1.0, 1.0 - 1 / 32768, 0.5, 1 / 32768]], np.float32).repeat(400, axis=1)
    sound = open_sound(media.write_audio(tmp_path / "a.wav", values))
    assert torch.equal(whole(sound), torch.from_numpy(values))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.m4a", "a.ogg", "a.mp4"])
def test_every_common_container_is_heard(tmp_path: Path, name: str) -> None:
    tone = media.tone(1.0, 48000, channels=2)
    if name == "a.mp4":
        path = media.write_video(tmp_path / name, sound=tone, sound_rate=48000)
    else:
        path = media.write_audio(tmp_path / name, tone, 48000)
    sound = open_sound(path)
    assert (sound.rate, sound.num_channels) == (48000, 2)
    assert sound.num_samples == pytest.approx(48000, abs=2048)
    spectrum = torch.fft.rfft(whole(sound)[:, 12000:36000]).abs()
    assert (spectrum.argmax(dim=1) * 2).tolist() == [440, 880]


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_parts_equal_the_resampled_whole(tmp_path: Path, rate: int) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 2 * rate + 77)).astype(np.float32)
    sound = open_sound(media.write_audio(tmp_path / "a.wav", noise, rate, codec="pcm_f32le"))
    expected = resample(torch.from_numpy(noise), rate, 16000)
    length = sound.resampled_length(16000)
    assert expected.shape[1] == length
    spans = [(0, 5), (3, 900), (7001, 7002), (9000, 9400), (9400, 9500), (length - 3, length)]
    for (begin, end), part in zip(spans, sound.read(spans, rate=16000), strict=True):
        torch.testing.assert_close(part, expected[:, begin:end], rtol=0, atol=1e-6)
    torch.testing.assert_close(whole(sound, 16000), expected, rtol=0, atol=1e-6)


def test_a_long_file_is_read_in_parts_that_equal_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 50_000)).astype(np.float32)
    path = media.write_audio(tmp_path / "a.flac", noise, 44100)
    spans = [(0, 300), (9000, 12000), (11000, 12500), (18000, 18140)]
    short = open_sound(path)
    monkeypatch.setattr(waveform, "KEPT_SAMPLES", 10_000)
    long = open_sound(path)
    assert short.kept is not None
    assert long.kept is None
    pairs = zip(short.read(spans, rate=16000), long.read(spans, rate=16000), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waveform, "KEPT_SAMPLES", 100_000)
    path = media.write_wav_header_only(tmp_path / "a.wav", rate=44100, num_samples=44100 * 60)
    tracemalloc.start()
    sound = open_sound(path)
    sound.read([(0, 16000), (800_000, 816_000)], rate=16000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sound.num_samples == 44100 * 60
    assert peak < 2_000_000, f"{peak} bytes for a file of 5 MB"


def test_a_prime_sample_rate_needs_no_gigabytes(tmp_path: Path) -> None:
    tone = media.tone(1, 44101)
    sound = open_sound(media.write_audio(tmp_path / "a.wav", tone, 44101))
    part = whole(sound, 16000)
    assert part.shape[1] == pytest.approx(16000, abs=20)
    assert int(torch.fft.rfft(part[0, :16000]).abs().argmax()) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2_000_000_000])
def test_absurd_sample_rates_are_refused(tmp_path: Path, rate: int) -> None:
    path = media.write_wav_header_only(tmp_path / "a.wav", rate=rate, num_samples=1000)
    with pytest.raises(MediaError, match=f"sample rate is {rate} Hz, 1000 to 768000 Hz expected"):
        open_sound(path)


def test_an_absurdly_long_sound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEO_LLAMA_MAX_SOUND_SECONDS", "1")
    with pytest.raises(MediaError, match=r"longer, at most 1 s are allowed .*MAX_SOUND_SECONDS"):
        open_sound(media.write_audio(tmp_path / "a.wav", media.tone(2)))


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tone = media.tone(1)
    tone[0, 500] = np.nan
    sound = open_sound(media.write_audio(tmp_path / "a.wav", tone, codec="pcm_f32le"))
    with pytest.raises(MediaError, match="no finite numbers"):
        whole(sound)


def loud(sound: Sound) -> list[tuple[float, float]]:
    """Begin and end, in seconds, of every stretch of sound between stretches of silence."""
    steps = sound.rate // 200  # 5 ms
    wave = whole(sound)[0]
    wave = wave[: len(wave) // steps * steps].view(-1, steps)
    is_loud = [False, *(wave.abs().amax(dim=1) > 0.1).tolist(), False]
    edges = [i * 0.005 for i in range(1, len(is_loud)) if is_loud[i] != is_loud[i - 1]]
    return [
        (begin - 0.005, end - 0.005) for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]


CONTAINERS = [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.mkv", "flac"), ("a.ts", "mp2")]


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_a_sound_that_starts_late_begins_with_silence(
    tmp_path: Path, name: str, codec: str
) -> None:
    tone = media.tone(2, 48000)
    path = tmp_path / name
    media.write_timed_sound(path, tone, codec=codec, start=1.5, num_frames=100)
    [(begin, end)] = loud(open_sound(path))
    assert (begin, end) == (pytest.approx(1.5, abs=0.01), pytest.approx(3.5, abs=0.05))


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_a_sound_that_starts_long_before_the_picture_is_where_showing_begins(
    tmp_path: Path, name: str, codec: str
) -> None:
    path = tmp_path / name
    media.write_timed_sound(
        path, media.tone(3, 48000), codec=codec, picture_start=0.8, num_frames=60
    )
    [(begin, end)] = loud(open_sound(path))
    assert (begin, end) == (pytest.approx(0, abs=0.01), pytest.approx(3, abs=0.05))


def test_a_sound_that_starts_a_little_before_the_picture_loses_its_beginning(
    tmp_path: Path,
) -> None:
    tone = media.tone(3, 48000)
    tone[:, 48000:52800] = 0  # silence from 1.0 to 1.1 s, which is 0.92 to 1.02 s of the clip
    path = media.write_timed_sound(
        tmp_path / "a.mkv", tone, codec="flac", picture_start=0.08, num_frames=60
    )
    (first, pause), (again, _) = loud(open_sound(path))
    assert (first, pause) == (pytest.approx(0, abs=0.01), pytest.approx(0.92, abs=0.01))
    assert again == pytest.approx(1.02, abs=0.01)


@pytest.mark.parametrize("with_picture", [True, False])
@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_a_pause_in_the_time_stamps_is_silence_at_its_place(
    tmp_path: Path, name: str, codec: str, with_picture: bool
) -> None:
    tone = media.tone(4, 48000)
    path = tmp_path / name
    frames = 175 if with_picture else 0
    media.write_timed_sound(path, tone, codec=codec, pause=(1.5, 3.0), num_frames=frames)
    (begin, stop), (go_on, end) = loud(open_sound(path))
    # Encoders fill a packet, so the pause begins up to one packet (24 ms) late.
    assert (begin, stop) == (pytest.approx(0, abs=0.01), pytest.approx(1.52, abs=0.04))
    assert (go_on, end) == (pytest.approx(4.5, abs=0.04), pytest.approx(7, abs=0.06))


def test_parts_of_a_paused_sound_equal_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mkv"
    tone = media.tone(2, 48000)
    media.write_timed_sound(path, tone, codec="flac", start=0.7, pause=(1.0, 0.5), num_frames=90)
    short = open_sound(path)
    monkeypatch.setattr(waveform, "KEPT_SAMPLES", 1000)
    long = open_sound(path)
    assert short.num_samples == long.num_samples
    spans = [(0, 12000), (11000, 20000), (30000, 40000)]
    pairs = zip(short.read(spans, rate=16000), long.read(spans, rate=16000), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_time_stamp_that_is_damaged_moves_nothing_far(tmp_path: Path) -> None:
    path = media.write_timed_sound(tmp_path / "a.mkv", media.tone(2, 48000), num_frames=50)
    expected = open_sound(path).num_samples
    data = bytearray(path.read_bytes())
    # The time of the last cluster, in ms, as Matroska's element 0xE7 of two bytes.
    place = data.rindex(b"\x1f\x43\xb6\x75")
    place = data.index(b"\xe7", place)
    size = data[place + 1] & 0x7F
    data[place + 2 : place + 2 + size] = b"\x7f" * size
    path.write_bytes(data)
    assert open_sound(path).num_samples <= expected + 48000


@pytest.mark.parametrize(
    ("name", "codec", "layout"),
    [
        *[("a.wav", "pcm_s16le", "7.1"), ("a.wav", "pcm_f32le", "hexadecagonal")],
        *[("a.mp4", "aac", "7.1"), ("a.mkv", "libopus", "7.1"), ("a.flac", "flac", "7.1")],
        *[("a.mka", "pcm_s24le", "22.2"), ("a.opus", "libopus", "7.1"), ("a.mkv", "aac", "5.1")],
    ],
)
def test_many_channels_are_heard(tmp_path: Path, name: str, codec: str, layout: str) -> None:
    channels = av.AudioLayout(layout).nb_channels
    tones = np.concatenate([media.tone(1, 48000, 300 + 100 * c) for c in range(channels)])
    path = media.write_timed_sound(tmp_path / name, tones, codec=codec, layout=layout)
    sound = open_sound(path)
    assert sound.num_channels == channels
    spectra = torch.fft.rfft(whole(sound)[:, 12000:36000]).abs()
    found = (spectra.argmax(dim=1) * 2).tolist()
    expected = [300 + 100 * c for c in range(channels)]
    if codec == "aac":  # it keeps only the lowest tones of the fourth channel, for deep notes
        del expected[3], found[3]
    assert found == expected


def test_more_channels_than_anything_has_are_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(200)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(2 * 200 * 100))
    with pytest.raises(MediaError, match="200 channels, 1 to 64 expected"):
        open_sound(tmp_path / "a.wav")


@pytest.mark.parametrize("counts", [(1, 2), (2, 1)])
def test_a_change_of_channels_or_rate_is_followed(tmp_path: Path, counts: tuple[int, int]) -> None:
    path = tmp_path / "a.mp3"
    rates = (44100, 22050) if counts == (1, 2) else (44100, 44100)
    parts = [
        media.write_audio(tmp_path / f"{c}.mp3", media.tone(1, rate, channels=c), rate)
        for c, rate in zip(counts, rates, strict=True)
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    sound = open_sound(path)
    assert sound.num_channels == counts[0]
    assert sound.num_samples / sound.rate == pytest.approx(2, abs=0.15)
    [heard] = sound.read([(0, 32000)], rate=16000)
    for begin in (4000, 20000):  # the first channel is the same tone in both halves
        spectrum = torch.fft.rfft(heard[0, begin : begin + 8000]).abs()
        assert int(spectrum.argmax()) * 2 == pytest.approx(440, abs=2)


def test_more_samples_than_the_limit_are_refused_while_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tones = np.zeros((24, 96000), np.float32)
    path = media.write_timed_sound(tmp_path / "a.mka", tones, codec="pcm_s16le", layout="22.2")
    assert open_sound(path).num_channels == 24
    monkeypatch.setenv("VIDEO_LLAMA_MAX_SAMPLES", "1000000")
    with pytest.raises(
        MediaError, match=r"more samples, at most 1000000 .*VIDEO_LLAMA_MAX_SAMPLES"
    ):
        open_sound(path)


def huge_picture(side: int) -> bytes:
    """A PNG of side x side black pixels, written by hand: small as a file, huge in memory."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 + 3 * side)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def test_huge_covers_of_a_song_are_not_unpacked(tmp_path: Path) -> None:
    song = media.write_audio(tmp_path / "a.mp3", media.tone(1, 44100), 44100).read_bytes()
    cover = huge_picture(8000)
    frames = b""
    for kind in range(12):
        body = b"\0image/png\0" + bytes([kind]) + b"%d\0" % kind + cover
        frames += b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = bytes(len(frames) >> shift & 127 for shift in (21, 14, 7, 0))
    (tmp_path / "a.mp3").write_bytes(b"ID3\3\0\0" + size + frames + song)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert open_sound(tmp_path / "a.mp3").num_samples == pytest.approx(44100, abs=3000)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < 150_000_000, "one cover takes 192 MB, twelve of them 2.3 GB"


def test_a_flac_that_claims_hours_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    media.write_timed_sound(path, media.tone(1, 48000, channels=8), codec="flac", layout="7.1")
    data = bytearray(path.read_bytes())
    fields = int.from_bytes(data[18:26], "big")  # rate, channels, bits and 36 bits of length
    data[18:26] = (fields >> 36 << 36 | 9 * 3600 * 48000).to_bytes(8, "big")
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"ends at 1 s of 3\.24e\+04 s; the file is cut short"):
        open_sound(path)


def test_no_sound_track_no_samples_and_damage_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NoSoundError):
        open_sound(media.write_video(tmp_path / "a.mp4"))
    with pytest.raises(NoSoundError, match="no samples"):
        open_sound(media.write_wav_header_only(tmp_path / "a.wav"))
    damaged = tmp_path / "b.mp4"
    options = {"movflags": "faststart"}
    media.write_video(damaged, num_frames=2, sound=media.tone(9), options=options)
    media.corrupt(damaged, 0.3, 1.0)
    with pytest.raises(MediaError, match="damaged"):
        open_sound(damaged)


@pytest.mark.parametrize("name", ["a.flac", "a.mp4"])
def test_a_sound_cut_short_is_told_by_what_the_header_promises(tmp_path: Path, name: str) -> None:
    path, tone = tmp_path / name, media.tone(9)
    if name == "a.mp4":
        media.write_video(path, num_frames=2, sound=tone, options={"movflags": "faststart"})
    else:
        media.write_audio(path, tone)
    with pytest.raises(MediaError, match=r"of 9\.?\d* s; the file is cut short"):
        open_sound(media.truncate(path, 0.6))
