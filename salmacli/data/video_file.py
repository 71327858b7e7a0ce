"""Video files: decoded once to count, then read by number, on from where one is or from a key frame before."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from salmacli.data.ahead import in_order
from salmacli.data.frames import Frame, FrameSource
from salmacli.errors import DataError

_FAR = 32  # frames: decoding on takes no longer than opening the file anew and seeking
_TRIES = 3  # key frames that are tried before decoding starts from the beginning
_MEND = "download or export it again, or give its frames as a folder of pictures"


class VideoFile(FrameSource):
    """One video file, read by PyAV.

    It is decoded once when it is opened: containers state their length wrongly too often, and a file that is broken
    should say so before work begins. Timestamps are all that is kept of it.

    Args:
        path: The file.
        whole: False: only its packets are counted, where their timestamps tell the frames apart. That takes a small
            part of the time; a damaged frame then says so when it is read. Training opens files so.

    Raises:
        DataError: It cannot be read, holds no video, or ends too early.
    """

    def __init__(self, path: Path, whole: bool = True) -> None:
        self._index = (None if whole else _listed(path)) or _counted(path)
        super().__init__(path, [f"{number:05d}" for number in range(self._index.frames)])
        self._size, self.fps = self._index.size, self._index.fps

    def _stream(self, numbers: Sequence[int], then: Callable[[Frame], Any], threads: int, ahead: int) -> Iterator[Any]:
        # Decoding is one chain of work; what follows it may be done for several frames at once.
        with (
            closing(self._in_blocks(numbers, max(1, ahead))) as frames,
            closing(in_order(lambda _: next(frames), range(len(numbers)), threads=1, ahead=1)) as decoded,
            closing(in_order(then, decoded, threads, ahead)) as results,
        ):
            yield from results

    def _load(self, number: int) -> Frame:
        with closing(_Decoder(self.path, self._index)) as decoder:
            return decoder.frame(number)

    def _in_blocks(self, numbers: Sequence[int], length: int) -> Generator[Frame, None, None]:
        """Frames in the order asked; within a block they are decoded in ascending order, as far as they are needed."""
        with closing(_Decoder(self.path, self._index)) as decoder:
            for start in range(0, len(numbers), length):
                block = [range(len(self))[number] for number in numbers[start : start + length]]
                left, held = Counter(block), dict[int, Frame]()
                ascending = iter(sorted(left))
                for number in block:
                    while number not in held:
                        coming = next(ascending)
                        held[coming] = self._checked(coming, decoder.frame(coming))
                    left[number] -= 1
                    yield held[number] if left[number] else held.pop(number)


@dataclass(frozen=True)
class _Index:
    """What the first decoding finds.

    Attributes:
        frames: How many there are.
        size: (height, width) of the first, upright.
        fps: Frames per second, where the file says so.
        times: Each frame's presentation timestamp; none at all where they do not tell frames apart.
        keys: Frames from which decoding can start; without timestamps only the first.
    """

    frames: int
    size: tuple[int, int]
    fps: float | None
    times: Sequence[int]
    keys: Sequence[int]

    def key(self, number: int) -> int:
        """Place in ``keys`` of the last from which a frame can be reached."""
        return bisect_right(self.keys, number) - 1

    def number(self, time: int | None) -> int | None:
        """The frame of a timestamp."""
        place = len(self.times) if time is None else bisect_left(self.times, time)
        return place if place < len(self.times) and self.times[place] == time else None


class _Decoder:
    """Finds frames by number; knows where it stands, so that ascending numbers are decoded once."""

    def __init__(self, path: Path, index: _Index) -> None:
        self._path, self._index = path, index
        self._coming: Generator[tuple[int, Any], None, None] | None = None
        self._next = index.frames  # the number that comes next

    def frame(self, number: int) -> Frame:
        """(H, W, 3) uint8 RGB, upright."""
        place, keys = self._index.key(number), self._index.keys
        # A seek may land too late, or where the container does not know its timestamps; the beginning never fails.
        starts = [*keys[place : max(place - _TRIES, 0) : -1], 0]
        if keys[place] - _FAR < self._next <= number:
            picture = self._find(number)
            if picture is not None:
                return picture
        for start in starts:
            self.close()
            self._coming, self._next = _decoded(self._path, self._index, start), start
            picture = self._find(number)
            if picture is not None:
                return picture
        raise DataError(f"frame {number:05d} of {self._path} is not there any more", "leave the file while it is read")

    def close(self) -> None:
        """Let go of the file."""
        if self._coming is not None:
            self._coming.close()

    def _find(self, number: int) -> Frame | None:
        for found, frame in self._coming or ():
            self._next = found + 1
            if found == number:
                if frame.is_corrupt:  # of a file that was not decoded when it was opened
                    raise DataError(f"frame {number:05d} of {self._path} is damaged", _MEND)
                return _upright(frame.to_ndarray(format="rgb24"), frame.rotation)
            if found > number:
                break
        return None


def _decoded(path: Path, index: _Index, start: int) -> Generator[tuple[int, Any], None, None]:
    """Numbers and frames from a key frame on; from the beginning they are counted, elsewhere known by their time."""
    with _opened(path) as (container, stream):
        if not start:
            yield from enumerate(container.decode(stream))
            return
        container.seek(index.times[start], stream=stream)
        clean = False
        for frame in container.decode(stream):
            number = index.number(frame.pts)
            if number is None:
                return
            # What comes before a key frame may build on frames that were not decoded.
            clean = clean or (frame.key_frame and index.keys[index.key(number)] == number)
            if clean:
                yield number, frame


def _counted(path: Path) -> _Index:
    """Decode a file once, without making pictures of its frames."""
    times: list[int | None] = []
    keys = [0]
    size = None
    with _opened(path) as (container, stream):
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise DataError(f"video {path} breaks off or is damaged after {len(times)} frames", _MEND)
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise DataError(f"frame {len(times):05d} of {path} is damaged", _MEND)
                    if frame.key_frame and times:
                        keys.append(len(times))
                    if size is None:
                        size = _size(frame)
                    times.append(frame.pts)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise DataError(f"frame {len(times):05d} of {path} cannot be decoded ({_reason(error)})", _MEND) from None
        known = [time for time in times if time is not None]
        telling = len(known) == len(times) and all(a < b for a, b in pairwise(known))
        if size is None:
            raise DataError(f"video {path} holds no frames", _MEND)
        if container.format.name == "gif" and len(times) < stream.frames:
            # FFmpeg skips frames without a delay of their own; other containers' counts are often wrong.
            raise DataError(
                f"of {path} {len(times)} of {stream.frames} frames can be read",
                "save it with a duration per frame, or give its frames as a folder of pictures",
            )
        if telling and (known[-1] + 1) * stream.time_base < 0.95 * _seconds(stream) - 1:
            raise DataError(f"video {path} breaks off after {len(times)} frames, {_seconds(stream):.0f} s long", _MEND)
        fps = float(stream.average_rate) if stream.average_rate else None
        return _Index(len(times), size, fps, known if telling else (), keys if telling else [0])


def _listed(path: Path) -> _Index | None:
    """What a file's packets say, of which only the first are decoded; None where that does not tell frames apart."""
    times: list[int] = []
    keys: list[int] = []
    size = None
    with _opened(path) as (container, stream):
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise DataError(f"video {path} breaks off or is damaged after {len(times)} frames", _MEND)
                if size is None:
                    size = next((_size(frame) for frame in packet.decode()), None)
                if not packet.size or packet.is_discard:
                    continue
                if packet.pts is None:
                    return None
                if packet.is_keyframe:
                    keys.append(packet.pts)
                times.append(packet.pts)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise DataError(f"video {path} cannot be read ({_reason(error)})", _MEND) from None
        times.sort()  # packets come in the order in which they are decoded
        telling = all(a < b for a, b in pairwise(times)) and keys[:1] == times[:1]
        if size is None or not telling or container.format.name == "gif":
            return None
        fps = float(stream.average_rate) if stream.average_rate else None
        return _Index(len(times), size, fps, times, sorted({bisect_left(times, time) for time in keys}))


def _size(frame: Any) -> tuple[int, int]:
    """(height, width) of a frame, upright."""
    turned = round(frame.rotation / 90) % 2
    return (frame.width, frame.height) if turned else (frame.height, frame.width)


def _seconds(stream: Any) -> float:
    """How long a Matroska or WebM file says the video is; what is missing at its end nothing else tells. Or 0."""
    parts = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return sum(float(part) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True)) if parts else 0.0


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video that is not a cover."""
    try:
        # So a colon in the name is no protocol, and a playlist under a video's name may name files only.
        with av.open(f"file:{path}") as container:
            videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not videos:
                raise DataError(f"{path} holds no video", "give a video file, a folder of frames or a picture")
            videos[0].thread_type = "AUTO"
            yield container, videos[0]
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"video {path} cannot be read ({_reason(error)})", _MEND) from None


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _upright(picture: np.ndarray, rotation: int) -> np.ndarray:
    """Turned as phones ask for, by quarters."""
    return np.ascontiguousarray(np.rot90(picture, round(rotation / 90)))
