"""Open videos, from wherever they come, within limits, and read the frames that are on show at given times."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from embed.media import pixels_of, read_data_uri
from udr.errors import DataError
from udr.types import Media

__all__ = ["MAX_FILE", "MAX_FRAME", "MAX_SECONDS", "MAX_SENT", "Video", "open_video"]

MAX_FILE = 20_000_000_000  # bytes of a file, of which only what is needed is read
MAX_SENT = 50_000_000  # bytes of a video that comes as bytes
MAX_SECONDS = 24 * 3600.0
MAX_FRAME = 8192 * 4320  # pixels
FILE_WORK = 1 << 40  # pixels that are decoded of a file at most: some five hours of 1920 x 1080 at 30 a second
SENT_WORK = 1 << 30  # and of bytes: a quarter of a minute of the same; few bytes can hold very many frames alike
JUMP = 2.0  # seconds: what lies further ahead is sought, not decoded up to
THIN = 4  # sides in such a proportion are cut to the square before they are scaled
# readers that open nothing but the file itself: playlists and the like would open others, or addresses
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    *("matroska,webm", "avi", "mpegts", "mpeg", "ogg", "flv", "gif", "asf", "mp3", "wav", "flac", "aac"),
)
OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}


class Video:
    """An open video; times are seconds from its first frame, pixels upright.

    Frames are taken by their time stamps, so one of variable rate is sampled as evenly as any other.

    Raises:
        DataError: of every method, where the file is damaged, ends before its time, or asks for too much work.
    """

    def __init__(self, file: BinaryIO, where: str, work: int) -> None:
        self._file, self._where, self._left = file, where, work
        self._can_seek = True
        self._ahead: tuple[float, Any] | None = None
        self._open()
        self.seconds = self._length()
        if not 0 <= self.seconds <= MAX_SECONDS:
            raise DataError(f"{where}: {self.seconds:.0f} seconds, at most {MAX_SECONDS:.0f} are read")
        self._begin()

    @property
    def at(self) -> float:
        """The time up to which it was read last."""
        return self._now[0]

    def close(self) -> None:
        self._container.close()

    def frames(self, times: Sequence[float] | NDArray[np.float64], side: int) -> NDArray[np.uint8]:
        """The frames on show at ascending times, their middle squares scaled: uint8 (t, 3, side, side)."""
        found = np.empty((len(times), 3, side, side), np.uint8)
        for i, frame in enumerate(self.each(times, side)):
            found[i] = frame
        return found

    def each(self, times: Sequence[float] | NDArray[np.float64], side: int) -> Iterator[NDArray[np.uint8]]:
        """The same one by one, (3, side, side); of a time after the end the last frame."""
        made, made_of = None, None
        for time in times:
            frame = self._on_show(float(time))
            if made is None or frame is not made_of:
                try:
                    made, made_of = _square(frame, side, self._widening), frame
                except (av.FFmpegError, ValueError) as error:  # pixels of a form that nothing converts
                    raise DataError(f"{self._where}: damaged after {time:.2f} s ({_reason(error)})") from None
            yield made

    def _open(self) -> None:
        try:
            self._container: Any = av.open(self._file, options=OPTIONS)
        except (av.FFmpegError, ValueError) as error:
            raise DataError(f"{self._where}: no video that can be read ({_reason(error)})") from None
        of_pictures = av.stream.Disposition.attached_pic
        streams = [s for s in self._container.streams.video if not s.disposition & of_pictures]
        if not streams:
            sound = bool(self._container.streams.audio)
            self._container.close()
            raise DataError(f"{self._where}: no pictures in it{', only sound' if sound else ''}")
        self._stream = streams[0]
        context = self._stream.codec_context
        if context is None or not context.width or not context.height:
            self._container.close()
            raise DataError(f"{self._where}: no frame in it")
        if context.width * context.height > MAX_FRAME:
            self._container.close()
            raise DataError(
                f"{self._where}: frames of {context.width} x {context.height} pixels, at most {MAX_FRAME} are read"
            )
        context.options = {"max_pixels": str(MAX_FRAME)}  # frames may grow on the way
        context.thread_count = 1  # many videos are read side by side
        shape = float(self._stream.sample_aspect_ratio or 1)
        self._widening = shape if 1 / THIN <= shape <= THIN else 1.0

    def _length(self) -> float:
        """Seconds from the first frame to the end of the last one, as the file says, or as its packets do."""
        stream = self._stream
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if self._container.duration:
            return float(self._container.duration / 1_000_000)
        stamps: list[float] = []
        try:
            for packet in self._container.demux(stream):
                if packet.pts is not None and packet.time_base:
                    stamps.append(float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except av.FFmpegError as error:
            raise DataError(f"{self._where}: damaged ({_reason(error)})") from None
        self._restart()
        return max(stamps) - min(stamps) if stamps else 0.0

    def _restart(self) -> None:
        self._container.close()
        self._file.seek(0)
        self._open()

    def _begin(self) -> None:
        """Stand at the first frame, whose time becomes 0."""
        self._origin: float | None = None
        self._decoder = self._decode()
        first = next(self._decoder, None)
        if first is None:
            raise DataError(f"{self._where}: no frame in it")
        self._now = first
        self._ahead = next(self._decoder, None)

    def _decode(self) -> Iterator[tuple[float, Any]]:
        """Time and frame, from where the file stands."""
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 25)
        at = -1 / rate
        try:
            for frame in self._container.decode(self._stream):
                self._left -= frame.width * frame.height
                if self._left < 0:
                    raise DataError(f"{self._where}: too many frames to decode; cut it into parts")
                if frame.pts is None or frame.time_base is None:
                    at, self._can_seek = at + 1 / rate, False
                else:
                    stamp = float(frame.pts * frame.time_base)
                    self._origin = stamp if self._origin is None else self._origin
                    at = stamp - self._origin
                yield at, frame
        except (av.FFmpegError, ValueError) as error:
            raise DataError(f"{self._where}: damaged after {max(at, 0):.2f} s ({_reason(error)})") from None

    def _on_show(self, time: float) -> Any:
        back = self._now[0] > 0 and time < self._now[0]
        far = self._ahead is not None and self._can_seek and time - self._ahead[0] > JUMP
        if back or far:
            self._seek(time)
        while self._ahead is not None and self._ahead[0] <= time:
            self._now, self._ahead = self._ahead, next(self._decoder, None)
        at, frame = self._now
        if self._ahead is None:
            end = at + float((frame.duration or 0) * (frame.time_base or 0))
            if time > end + max(1.0, 0.1 * self.seconds):  # durations in headers are not exact
                raise DataError(f"{self._where}: ends after {end:.2f} of {self.seconds:.2f} s")
        return frame

    def _seek(self, time: float) -> None:
        """Stand at the last frame before `time` that needs no other, or at the first of all."""
        if self._can_seek and self._stream.time_base is not None:
            ticks = int((time + (self._origin or 0)) / self._stream.time_base)
            try:
                self._container.seek(ticks, stream=self._stream)
                self._decoder = self._decode()
                there = next(self._decoder, None)
            except av.FFmpegError:
                there = None
            if there is not None and there[0] <= time:
                self._now, self._ahead = there, next(self._decoder, None)
                return
            self._can_seek = False  # it leads astray
        self._restart()
        self._begin()


@contextmanager
def open_video(source: Path | bytes | Media, where: str = "") -> Iterator[Video]:
    """Open a video for the time of a `with`; `where` is how messages name it. Addresses are not fetched.

    Raises:
        DataError: no video, a damaged one, or one beyond the limits of this module; within the `with` too.
    """
    where = where or (str(source) if isinstance(source, Path) else "video")
    if isinstance(source, Path):
        try:
            size = source.stat().st_size
            file: BinaryIO = source.open("rb")
        except OSError as error:
            raise DataError(f"{where}: cannot be read ({error.strerror})") from None
        most, work = MAX_FILE, FILE_WORK
    else:
        raw = source if isinstance(source, bytes) else source.data or read_data_uri(source.uri, where)
        file, size, most, work = io.BytesIO(raw), len(raw), MAX_SENT, SENT_WORK
    with file:
        if not size:
            raise DataError(f"{where}: empty")
        if size > most:
            raise DataError(f"{where}: {size} bytes, at most {most} are read")
        video = Video(file, where, work)
        try:
            yield video
        finally:
            video.close()


def _square(frame: Any, side: int, widening: float) -> NDArray[np.uint8]:
    """The middle square of a frame, upright and scaled, (3, side, side); its pixels are `widening` as wide as high."""
    width, height = frame.width * widening, float(frame.height)
    if max(width, height) > THIN * min(width, height):  # scaled as a whole it would be huge
        pixels = pixels_of(frame.to_image(), side)
    else:
        scale = side / min(width, height)
        wide, high = max(side, round(width * scale)), max(side, round(height * scale))
        whole = frame.reformat(wide, high, "rgb24", interpolation="BICUBIC").to_ndarray()
        top, left = (high - side) // 2, (wide - side) // 2
        pixels = whole[top : top + side, left : left + side].transpose(2, 0, 1)
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns, (1, 2)))


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
