"""Open sounds, from wherever they come, within limits, and turn them into log-mel frames."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embed.media import MAX_BYTES, picture_bytes
from udr.errors import DataError, MissingDependencyError
from udr.types import Media

__all__ = ["MAX_SECONDS", "MELS", "RATE", "frames_of", "log_mel", "mel_filters", "open_sound"]

RATE = 16_000  # samples a second, which every sound is brought to
MAX_SECONDS = 60.0  # of one sound; what is longer is no spoken caption
RATES = (1_000, 400_000)  # samples a second that a file may have
CHANNELS = 32  # that a file may have at most
BLOCK = 65_536  # frames that are decoded at a time
FORMATS = ("WAV", "WAVEX", "OGG", "FLAC", "AIFF", "MP3")  # those that libsndfile reads and people have
MELS = 40  # bands
WINDOW, HOP = 400, 160  # samples: 25 ms and 10 ms
FFT = 512
SPREAD = 4.0  # roughly, of logarithms of energies of speech
FLOOR = 1e-5  # of energies, below which is silence


def open_sound(source: Path | bytes | Media, where: str = "", max_seconds: float = MAX_SECONDS) -> NDArray[np.float32]:
    """Decode a sound to one channel of 16 kHz; `where` is how messages name it.

    Channels are averaged; samples beyond ±1 are clipped; a silent sound is a sound.

    Shape: (t,), float32 from −1 to 1, one frame long at least.

    Raises:
        DataError: no sound, a damaged or empty one, or one of more than `max_seconds`.
        MissingDependencyError: soundfile or soxr is absent.
    """
    try:
        import soundfile
        import soxr
    except ImportError as error:
        raise MissingDependencyError(error.name or "soundfile", "embed") from None
    where = where or (str(source) if isinstance(source, Path) else "sound")
    raw = picture_bytes(source, where)  # bytes are bytes
    if not raw:
        raise DataError(f"{where}: empty")
    if len(raw) > MAX_BYTES:
        raise DataError(f"{where}: {len(raw)} bytes, at most {MAX_BYTES} are read")
    try:
        with soundfile.SoundFile(io.BytesIO(raw)) as file:
            _check(file, where)
            rate = int(file.samplerate)
            most = int(max_seconds * rate)
            # a header may promise less than there is, so the limit is one of reading too; channels become one block by
            # block, for few bytes can hold very many of them that are silent
            parts, count = [], 0
            for block in file.blocks(BLOCK, dtype="float32", always_2d=True):
                parts.append(block.mean(1))
                count += len(block)
                if count > most:
                    break
            samples = np.concatenate(parts) if parts else np.empty(0, np.float32)
    except (soundfile.SoundFileError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split()).rpartition(": ")[2].rstrip(".")
        raise DataError(f"{where}: no sound that can be read ({reason or type(error).__name__})") from None
    if not len(samples):
        raise DataError(f"{where}: a sound without samples")
    if len(samples) > most:
        raise DataError(f"{where}: longer than the {max_seconds:g} s that are read at most")
    wave = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    if rate != RATE:
        wave = soxr.resample(wave, rate, RATE)
    wave = np.clip(wave, -1, 1).astype(np.float32)
    return np.pad(wave, (0, max(0, WINDOW - len(wave))))


def _check(file: object, where: str) -> None:
    form, rate, channels = (getattr(file, name) for name in ("format", "samplerate", "channels"))
    if form not in FORMATS:
        raise DataError(f"{where}: a sound of format {form}; {', '.join(FORMATS)} are read")
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{where}: {rate} samples a second; {RATES[0]} to {RATES[1]} are read")
    if channels > CHANNELS:
        raise DataError(f"{where}: {channels} channels, at most {CHANNELS} are read")


@cache
def mel_filters(mels: int = MELS, rate: int = RATE, fft: int = FFT) -> Tensor:
    """Triangles over frequency whose corners are even in mel, m = 2595 log₁₀(1 + f/700), each of height 1.

    Source: O'Shaughnessy 1987; as in HTK, without normalisation of the areas.

    Shape: (mels, fft/2 + 1).
    """
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)  # Hz
    bins = np.linspace(0, rate / 2, fft // 2 + 1)
    rises = (bins[None] - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falls = (corners[2:, None] - bins[None]) / np.diff(corners)[1:, None]
    return torch.from_numpy(np.clip(np.minimum(rises, falls), 0, None)).float()


def log_mel(waves: Tensor, mels: int = MELS) -> Tensor:
    """Natural logarithms of mel energies, a frame each 10 ms: Hann windows of 25 ms that lie wholly in the sound.

    Shape: waves (…, t) of 16 kHz -> (…, 1 + (t − 400) // 160, mels).
    """
    frames = waves.unfold(-1, WINDOW, HOP) * torch.hann_window(WINDOW, device=waves.device, dtype=waves.dtype)
    power = torch.fft.rfft(frames, FFT).abs().square()
    energies: Tensor = power @ mel_filters(mels).to(power).T
    return energies.clamp_min(FLOOR).log()


def frames_of(wave: NDArray[np.float32], mels: int = MELS) -> NDArray[np.float32]:
    """Log-mel frames of one sound as networks read them: less their mean, so that how loud it is does not matter.

    It is one mean over time and bands; the mean of each band would take away what a steady sound is.

    Shape: (t,) -> (frames, mels).
    """
    found = log_mel(torch.from_numpy(wave), mels)
    frames: NDArray[np.float32] = ((found - found.mean()) / SPREAD).numpy()
    return frames
