"""Frames wherever they lie: single pictures, folders of pictures, video files, arrays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from salmacli.data.ahead import in_order
from salmacli.errors import DataError, UsageError

Frame = NDArray[np.uint8]
Result = TypeVar("Result")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg"),
    *(".ts", ".mts", ".m2ts", ".ogv", ".wmv", ".flv", ".3gp"),
)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a Path has lost the second slash; one letter is a drive


def same(frame: Frame) -> Frame:
    """The frame itself."""
    return frame


class FrameSource:
    """The frames of one video or picture, read when they are asked for.

    Nothing is kept: a source needs the memory of the frames that are on their way, however long the video is.

    Attributes:
        path: Where the frames come from.
        names: Frame names without suffix.
        still: Whether it is a single picture, not a video.
        fps: Frames per second where the file says so.
        files: The pictures that it consists of; none of a video file.
    """

    path: Path
    names: tuple[str, ...]
    still: bool = False
    fps: float | None = None
    files: tuple[Path, ...] = ()

    def __init__(self, path: Path, names: Sequence[str], still: bool = False) -> None:
        self.path, self.names, self.still = path, tuple(names), still
        self._size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), the same for all frames.

        Raises:
            DataError: The first frame cannot be read.
        """
        if self._size is None:
            self._size = self._first_size()
        return self._size

    def __getitem__(self, number: int) -> Frame:
        """One frame, (H, W, 3) uint8 RGB.

        Raises:
            DataError: It cannot be read or differs in size from the first.
            IndexError: There is no such frame.
        """
        number = range(len(self))[number]
        return self._checked(number, self._load(number))

    def __iter__(self) -> Iterator[Frame]:
        """All frames in order, read ahead as :meth:`read` does."""
        return self.read(range(len(self)))

    @overload
    def read(self, numbers: Sequence[int], *, threads: int = 4, ahead: int = 8) -> Iterator[Frame]: ...

    @overload
    def read(
        self, numbers: Sequence[int], then: Callable[[Frame], Result], threads: int = 4, ahead: int = 8
    ) -> Iterator[Result]: ...

    def read(
        self, numbers: Sequence[int], then: Callable[[Frame], Any] = same, threads: int = 4, ahead: int = 8
    ) -> Iterator[Any]:
        """Frames in the order asked, read by threads while the consumer works on those before.

        Args:
            numbers: In any order, with gaps and repeats; of a video file ascending ones are decoded only once.
            then: Applied to each frame by the threads.
            threads: How many frames are read at once; of a video file, handed to ``then``.
            ahead: How many frames are read beyond the one that is yielded.

        Raises:
            DataError: A frame cannot be read or differs in size from the first. Those before it come first.
            IndexError: There is no such frame.
        """
        return self._stream(numbers, then, threads, ahead)

    def _stream(self, numbers: Sequence[int], then: Callable[[Frame], Any], threads: int, ahead: int) -> Iterator[Any]:
        return in_order(lambda number: then(self[number]), numbers, threads, ahead)

    def _load(self, number: int) -> Frame:
        raise NotImplementedError

    def _first_size(self) -> tuple[int, int]:
        raise NotImplementedError

    def _checked(self, number: int, frame: Frame) -> Frame:
        if frame.shape[:2] != self.size:
            (height, width), (rows, columns) = self.size, frame.shape[:2]
            raise DataError(
                f"frame {self.names[number]} of {self.path} is {columns}x{rows}, the first is {width}x{height}",
                "bring all frames of a video to one size",
            )
        return frame


class _Pictures(FrameSource):
    def __init__(self, files: Sequence[Path], where: Path, still: bool, upright: bool) -> None:
        super().__init__(where, [file.stem for file in files], still)
        self.files, self._upright = tuple(files), upright

    def _load(self, number: int) -> Frame:
        return read_frame(self.files[number], self._upright)

    def _first_size(self) -> tuple[int, int]:
        return frame_size(self.files[0], self._upright)


class _Arrays(FrameSource):
    def __init__(self, frames: Sequence[Frame], still: bool) -> None:
        super().__init__(Path("arrays"), [f"{number:05d}" for number in range(len(frames))], still)
        self._frames = frames

    def _load(self, number: int) -> Frame:
        frame = self._frames[number]
        if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
            found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise DataError(f"frame {number} is {found}", "give uint8 arrays (H, W, 3), RGB")
        return frame

    def _first_size(self) -> tuple[int, int]:
        height, width = self._load(0).shape[:2]
        return height, width


def pictures(files: Sequence[Path], where: Path, still: bool = False) -> FrameSource:
    """Pictures as they are stored, one per frame, in the order given.

    Args:
        files: At least one.
        where: What they are the frames of, for messages.
        still: Whether it is a single picture, not a video.
    """
    return _Pictures(files, where, still, upright=False)


def arrays(frames: Sequence[Frame], still: bool = False) -> FrameSource:
    """Frames in memory: uint8 (H, W, 3), RGB, all of one size; checked when they are read."""
    return _Arrays(frames, still)


def frames_of(path: str | Path) -> FrameSource:
    """Opens what a user names: a folder of pictures (natural order), one picture, or a video file.

    Frames come as viewers show them: turned as EXIF or the video's display matrix says, and so are the masks predicted
    for them. Benchmarks, whose masks fit the stored pixels, open :func:`pictures`.

    Raises:
        UsageError: It is a URL, or a file of another kind.
        DataError: Nothing is there, a folder holds no picture or two of the same name, or the video cannot be read.
    """
    given, path = str(path), Path(path)
    try:
        there = path.exists()
        files = _pictures_in(path) if path.is_dir() else None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})", "check its name and its permissions") from None
    url = _URL.match(given)
    if url and not there:
        whole = f"{url.group()}/{given[url.end() :].lstrip('/')}"
        raise UsageError(f"{whole} is a URL", "download it first and name the file")
    if files is not None:
        return _Pictures(files, path, still=False, upright=True)
    if not there:
        raise DataError(f"{path} does not exist", "name a folder of frames, a picture or a video file")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _Pictures([path], path, still=True, upright=True)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        known = " ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise UsageError(f"{path} is neither a picture nor a video by its name", f"give a folder or a file: {known}")
    from salmacli.data.video_file import VideoFile  # PyAV is slow to import, and most inputs are folders

    return VideoFile(path)


def read_frame(path: str | Path, upright: bool = False) -> Frame:
    """Reads one picture. Of 16 bits per channel the upper 8 are kept, of colours with alpha the colours.

    Args:
        path: The file.
        upright: Turn it as its EXIF orientation says; otherwise it comes as it is stored.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        DataError: The file is missing, truncated, no picture, several, or one of floats or 32-bit integers.
    """
    with _opened(path) as picture:
        # A photo may carry a second, small one (MPO); an animation is another thing.
        if getattr(picture, "is_animated", False) and picture.format != "MPO":
            raise DataError(f"{path} holds several pictures", "write each into a file of its own, in one folder")
        return _rgb(ImageOps.exif_transpose(picture) if upright else picture, path)


def frame_size(path: str | Path, upright: bool = False) -> tuple[int, int]:
    """(height, width) of what :func:`read_frame` reads, from the file's header."""
    with _opened(path) as picture:
        turned = upright and picture.getexif().get(ExifTags.Base.Orientation, 1) > 4
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


def natural_key(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which frame2 comes before frame10."""
    pieces = re.split(r"(\d+)", path.name)
    return tuple((0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            yield picture
    except FileNotFoundError:
        raise DataError(f"frame {path} does not exist", "check the folder, or copy the frame again") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"frame {path} cannot be read ({reason})", "copy or download it again") from None


def _pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder. A broken link counts: to leave it out would shift the frames after it."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."]
    files = sorted((file for file in files if not file.is_dir()), key=lambda file: (natural_key(file), file.name))
    if not files:
        raise DataError(f"folder {folder} holds no picture", "name a folder of .jpg or .png frames, or a video file")
    stem, count = Counter(file.stem for file in files).most_common(1)[0]
    if count > 1:
        names = " and ".join(file.name for file in files if file.stem == stem)
        raise DataError(f"folder {folder} holds {names}, one frame twice", "keep one of them")
    return files


def _rgb(picture: Image.Image, path: str | Path) -> Frame:
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        # Pillow would clip at 255; it keeps the upper bits of 16-bit colours, and grey ones should look the same.
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.repeat(grey[..., np.newaxis], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise DataError(f"frame {path} holds {picture.mode} values, not 8 or 16 bits", "write it as 8-bit RGB")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"), dtype=np.uint8)
