"""Frames from disk: single pictures, folders of pictures and video files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from salmacli.errors import DataError

Frame = NDArray[np.uint8]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def read_frame(path: str | Path) -> Frame:
    """Reads one picture.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        DataError: the file is missing, truncated or no picture.
    """
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"), dtype=np.uint8)
    except FileNotFoundError:
        raise DataError(f"frame {path} does not exist", "check the folder, or copy the frame again") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"frame {path} cannot be read ({reason})", "copy or download it again") from None


class FrameSource:
    """Frames in order, read one at a time. Every iteration starts at the first frame.

    Attributes:
        path: Where the frames come from.
        names: Frame names without suffix.
        still: Whether it is a single picture, not a video.
    """

    path: Path
    names: tuple[str, ...]
    still: bool = False

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.path = path
        self.names = names
        self._size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), the same for all frames."""
        if self._size is None:
            first = next(self._read())
            self._size = (first.shape[0], first.shape[1])
        return self._size

    def __iter__(self) -> Iterator[Frame]:
        """Yields (H, W, 3) uint8 RGB.

        Raises:
            DataError: a frame cannot be read or differs in size from the first.
        """
        for name, frame in zip(self.names, self._read(), strict=True):
            if self._size is None:
                self._size = (frame.shape[0], frame.shape[1])
            if frame.shape[:2] != self._size:
                (height, width), (rows, columns) = self._size, frame.shape[:2]
                raise DataError(
                    f"frame {name} of {self.path} is {rows}x{columns}, the first is {height}x{width}",
                    "bring all frames of a video to one size",
                )
            yield frame

    def _read(self) -> Iterator[Frame]:
        raise NotImplementedError


class _Pictures(FrameSource):
    def __init__(self, path: Path, files: list[Path]) -> None:
        super().__init__(path, tuple(file.stem for file in files))
        self.files = files

    def _read(self) -> Iterator[Frame]:
        for file in self.files:
            yield read_frame(file)


class _VideoFile(FrameSource):
    """A video file is decoded twice, once to count: containers state their length wrongly too often."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(path, tuple(f"{index:05d}" for index in range(sum(1 for _ in self._read()))))
        if not self.names:
            raise DataError(f"video {path} holds no frames", "give a video file or a folder of frames")

    def _read(self) -> Iterator[Frame]:
        import av  # slow to import, and most inputs are folders

        try:
            with av.open(str(self.path)) as container:
                for frame in container.decode(video=0):
                    yield frame.to_ndarray(format="rgb24")
        except (av.FFmpegError, OSError, IndexError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"video {self.path} cannot be read ({reason})",
                "give a folder of .jpg or .png frames, one picture, or a video file",
            ) from None


def frames_of(path: str | Path) -> FrameSource:
    """Opens a folder of pictures (natural order), one picture, or a video file.

    Raises:
        DataError: nothing is there, the folder holds no picture, or the video cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted((f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES), key=natural_key)
        if not files:
            raise DataError(f"folder {path} holds no .jpg or .png", "name a folder of frames or a video file")
        return _Pictures(path, files)
    if not path.exists():
        raise DataError(f"{path} does not exist", "name a folder of frames, a picture or a video file")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        picture = _Pictures(path, [path])
        picture.still = True
        return picture
    return _VideoFile(path)


def natural_key(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which frame2 comes before frame10."""
    pieces = re.split(r"(\d+)", path.name)
    return tuple((0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces)
