"""Sounds: whatever people send becomes 16 kHz of one channel or one clear line, and log-mel frames as others make."""

from __future__ import annotations

import base64
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from embed.audio import MELS, RATE, frames_of, log_mel, mel_filters, open_sound
from udr.errors import DataError
from udr.types import Media


def tone(rate: int, seconds: float = 0.5, channels: int = 1, form: str = "WAV", hertz: float = 440.0) -> bytes:
    times = np.arange(int(rate * seconds)) / rate
    samples = np.repeat(0.5 * np.sin(2 * np.pi * hertz * times)[:, None], channels, 1)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form)
    return file.getvalue()


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG"])
def test_a_tone_of_any_rate_and_channels_is_the_same_tone_at_16_khz(rate: int, channels: int, form: str) -> None:
    wave = open_sound(tone(rate, channels=channels, form=form))
    assert wave.dtype == np.float32
    assert len(wave) == pytest.approx(RATE / 2, abs=2)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(wave)) / RATE)
    middle = slice(800, -800)  # where a resampler has both sides
    assert np.abs(wave - expected)[middle].max() < (0.05 if form == "OGG" else 0.005)


def test_what_lies_above_half_the_new_rate_does_not_come_back_as_another_tone() -> None:
    high = open_sound(tone(48_000, hertz=12_000))
    assert np.abs(high[800:-800]).max() < 0.01


def test_the_same_sound_by_path_bytes_and_media_is_one(tmp_path: Path) -> None:
    raw = tone(16_000)
    (tmp_path / "a.wav").write_bytes(raw)
    uri = "data:audio/wav;base64," + base64.b64encode(raw).decode()
    expected = open_sound(raw)
    for source in (tmp_path / "a.wav", Media("audio", data=raw), Media("audio", uri=uri)):
        np.testing.assert_array_equal(open_sound(source), expected)


def test_silent_clipped_and_very_short_sounds_are_sounds() -> None:
    def written(samples: np.ndarray, subtype: str = "FLOAT") -> bytes:
        file = io.BytesIO()
        soundfile.write(file, samples, RATE, format="WAV", subtype=subtype)
        return file.getvalue()

    silent = frames_of(open_sound(written(np.zeros(RATE))))
    assert np.abs(silent).max() < 1e-5  # the mean is taken off
    loud = open_sound(written(np.array([3.0, -7.0, np.nan, np.inf] * 1000)))
    assert loud.min() == -1
    assert loud.max() == 1
    assert np.isfinite(loud).all()
    assert frames_of(open_sound(written(np.array([0.5])))).shape == (1, MELS)


def test_a_steady_tone_keeps_its_band() -> None:
    for hertz in (300.0, 2500.0):
        frames = frames_of(open_sound(tone(16_000, hertz=hertz)))
        centres = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), MELS + 2) / 2595) - 1)[1:-1]
        assert centres[frames.mean(0).argmax()] == pytest.approx(hertz, rel=0.15)


def test_louder_is_the_same_frames() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    np.testing.assert_allclose(frames_of(noise), frames_of(4 * noise), atol=1e-2)


def test_what_is_no_sound_is_told_in_one_line(tmp_path: Path) -> None:
    def told(source: bytes | Path | Media, words: str, **more: float) -> None:
        with pytest.raises(DataError, match=words) as caught:
            open_sound(source, "query 7" if isinstance(source, bytes) else "", **more)
        assert "\n" not in str(caught.value)

    told(b"", "query 7: empty")
    told(b"RIFF....WAVEno sound at all", "query 7: no sound that can be read")
    told(b"\x89PNG\r\n\x1a\n" + bytes(100), "no sound that can be read")
    told(tone(16_000)[:40], "no sound that can be read|without samples")
    told(tone(16_000, 0), "without samples")
    told(tone(16_000, 2), "longer than the 1.5 s", max_seconds=1.5)
    told(tone(500, 1), "500 samples a second")
    told(tmp_path / "none.wav", "none.wav: cannot be read")
    told(Media("audio", uri="http://127.0.0.1/a.wav"), "not fetched")
    file = io.BytesIO()
    soundfile.write(file, np.zeros((100, 40)), RATE, format="WAV")
    told(file.getvalue(), "40 channels")


def test_a_broken_ogg_is_read_as_far_as_it_goes_or_told() -> None:
    raw = tone(16_000, 20, form="OGG")
    assert 0 < len(open_sound(raw[: 2 * len(raw) // 3])) < 20 * RATE
    for cut in (200, 60):
        with pytest.raises(DataError, match="sound"):
            open_sound(raw[:cut])


def test_log_mel_is_what_transformers_computes() -> None:
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    filters = mel_filter_bank(257, MELS, 0.0, RATE / 2, RATE, norm=None, mel_scale="htk")
    np.testing.assert_allclose(mel_filters().numpy(), filters.T, atol=1e-6)
    wave = np.random.default_rng(1).normal(0, 0.1, 5000)
    window = window_function(400, "hann", periodic=True)
    theirs = spectrogram(
        wave, window, 400, 160, 512, power=2.0, center=False, mel_filters=filters, mel_floor=1e-5, log_mel="log"
    )
    ours = log_mel(torch.from_numpy(wave))
    assert ours.shape == (1 + (5000 - 400) // 160, MELS)
    np.testing.assert_allclose(ours.numpy(), theirs.T, atol=1e-4)


def test_many_silent_channels_in_few_bytes_are_not_held_at_once() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((48_000 * 20, 8), np.float32), 48_000, format="FLAC")
    assert len(file.getvalue()) < 100_000
    tracemalloc.start()
    wave = open_sound(file.getvalue())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(wave) == 20 * 16_000
    assert peak < 48_000 * 20 * 8 * 4 / 1.5  # bytes of all channels together
