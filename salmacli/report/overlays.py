"""Masks drawn over frames: pictures to look at and short videos, all in one pass over the frames."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from salmacli.data.ahead import in_order
from salmacli.data.frames import Frame, FrameSource
from salmacli.engine.progress import Progress
from salmacli.errors import DataError
from salmacli.report.captions import INK, PAPER, Colour, caption

RED: Colour = (235, 45, 75)
_COLOURS: tuple[Colour, ...] = (
    RED,
    (40, 120, 255),
    (30, 180, 90),
    (255, 150, 20),
    (160, 80, 255),
    (0, 190, 210),
    (235, 205, 40),
    (255, 110, 200),
)
_OPACITY = 0.45
_GAP = 6  # pixels between frames on a sheet
_MOST_LINES = 40  # of sentences on a sheet
_AT_ONCE = 8  # videos that are encoded in one pass; an encoder takes some 100 MB at 720p


class Layer(NamedTuple):
    """One sentence through a video.

    Attributes:
        text: The sentence.
        mask: The mask of a frame, (H, W), by its number.
        colour: In which both are drawn.
    """

    text: str
    mask: Callable[[int], NDArray[np.bool_]]
    colour: Colour = RED


def colour_of(number: int) -> Colour:
    """Colours that are easy to tell apart; from the ninth on they grow alike."""
    if number < len(_COLOURS):
        return _COLOURS[number]
    hue = number * 0.618034 % 1  # the golden ratio never comes back to a hue
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.9, 0.6)[number % 2], (0.95, 0.75, 0.6)[number % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(frame: Frame, mask: NDArray[np.bool_], colour: Colour = RED) -> Frame:
    """Tint a frame where the mask is and draw the mask's outline.

    Args:
        frame: RGB image (H, W, 3).
        mask: Mask (H, W).
        colour: RGB, 0..255.

    Returns:
        A new RGB image (H, W, 3).

    Raises:
        DataError: The sizes of frame and mask differ.
    """
    if frame.shape[:2] != mask.shape:
        sizes = f"{mask.shape[1]}x{mask.shape[0]} mask, {frame.shape[1]}x{frame.shape[0]} frame"
        raise DataError(f"mask and frame differ in size ({sizes})", "predict again for these frames")
    drawn = frame.copy()
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows):
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # all that follows is as large as that
        inside, part = mask[box], drawn[box]
        tint = np.asarray(colour, dtype=np.float32)
        part[inside] = ((1 - _OPACITY) * part[inside] + _OPACITY * tint).astype(np.uint8)
        width = max(1, round(min(mask.shape) / 270))  # the same to the eye at every size
        part[inside & ~binary_erosion(inside, iterations=width)] = colour
    return drawn


class Sheet:
    """One picture of frames spread evenly over a video, with their masks, under the sentences.

    Args:
        source: The video; it is not read here.
        layers: At least one.
        limit: At most so many frames are shown.

    Attributes:
        layers: What it shows.
        numbers: Of the frames that it shows, ascending.
        picture: What is drawn so far.

    Raises:
        DataError: There is no frame.
    """

    def __init__(self, source: FrameSource, layers: Sequence[Layer], limit: int = 8) -> None:
        if not len(source):
            raise DataError(f"{source.path} has no frames to draw", "give at least one frame")
        places = np.linspace(0, len(source) - 1, min(limit, len(source))).round().astype(int)
        self.numbers: list[int] = np.unique(places).tolist()
        self.layers, count = layers, len(self.numbers)
        self._columns = count if count <= 3 else 4 if count > 4 else 2
        self._cell = width, height = _cell_size(source.size, self._columns)
        letter = min(28, max(12, width // 22))
        self._font, self._line = ImageFont.load_default(size=letter), round(letter * 1.4)
        full = self._columns * (width + _GAP) + _GAP
        head = caption([(layer.text, layer.colour) for layer in layers], full, max(16, letter), _MOST_LINES, each=3)
        rows = -(-count // self._columns)
        self.picture = Image.new("RGB", (full, head.height + rows * (height + self._line + _GAP) + _GAP), PAPER)
        self.picture.paste(head, (0, 0))
        self._top = head.height

    def add(self, number: int, frame: Frame) -> None:
        """Put a frame, over which the masks are drawn, in its place."""
        (width, height), place = self._cell, self.numbers.index(number)
        left = _GAP + place % self._columns * (width + _GAP)
        top = self._top + place // self._columns * (height + self._line + _GAP)
        self.picture.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS), (left, top))
        words = _told(number, self.layers)
        ImageDraw.Draw(self.picture).text((left, top + height + 1), words, fill=INK, font=self._font)


def write_overlays(
    source: FrameSource,
    places: Mapping[Path, Sequence[Layer]],
    sheets: bool,
    fps: float | None,
    progress: Progress,
) -> None:
    """Write ``overlay.png`` and ``overlay.mp4`` of several sentences; a frame is read once for every 8 of them.

    Args:
        source: The video or picture. Few of its frames are held at once.
        places: What is shown, by the folder it goes to, which is made.
        sheets: Write the pictures.
        fps: Frames per second of the videos; none are written without.
        progress: Told of every frame of a video and every picture.

    Raises:
        DataError: There is no frame, or one cannot be read.
    """
    folders = list(places)
    for start in range(0, len(folders), _AT_ONCE):
        group = {folder: places[folder] for folder in folders[start : start + _AT_ONCE]}
        for folder in group:
            folder.mkdir(parents=True, exist_ok=True)
        _write_group(source, group, sheets, fps, progress)


def _write_group(
    source: FrameSource,
    group: Mapping[Path, Sequence[Layer]],
    sheets: bool,
    fps: float | None,
    progress: Progress,
) -> None:
    shown = [Sheet(source, layers) for layers in group.values()]
    strips = [strip(source.size, layers) if fps else None for layers in group.values()]
    kept = set(shown[0].numbers) if sheets else set()
    numbers = range(len(source)) if fps else sorted(kept)

    def draw(one: tuple[int, Frame, int]) -> tuple[int, int, Frame]:
        number, frame, place = one
        return number, place, drawn(frame, number, shown[place].layers, strips[place])

    with ExitStack() as stack:
        threads = max(1, (os.cpu_count() or 1) // len(group))
        videos = [stack.enter_context(video(folder / "overlay.mp4", fps, threads)) for folder in group] if fps else []
        frames = zip(numbers, source.read(numbers), strict=True)
        jobs = ((number, frame, place) for number, frame in frames for place in range(len(group)))
        for number, place, picture in stack.enter_context(closing(in_order(draw, jobs, threads=2, ahead=4))):
            if number in kept:
                shown[place].add(number, picture[-source.size[0] :])  # without the strip
            if videos:
                videos[place](picture)
                progress.advance()
    for folder, sheet in zip(group, shown if sheets else (), strict=False):
        sheet.picture.save(folder / "overlay.png")
        progress.advance()


def strip(size: tuple[int, int], layers: Sequence[Layer]) -> Frame:
    """What stands above every frame of a video, (height of the strip, W, 3): the sentences.

    Args:
        size: (height, width) of the frames.
        layers: At least one.
    """
    height, width = size
    letter = max(13, min(width // 45, height // 12))
    most = max(2, round(0.4 * height / (1.4 * letter)))
    each = 2 if 2 * len(layers) <= most else 1
    return np.asarray(caption([(layer.text, layer.colour) for layer in layers], width, letter, most, each))


@contextmanager
def video(path: Path, fps: float = 10.0, threads: int = 0) -> Iterator[Callable[[Frame], None]]:
    """An H.264 mp4 that browsers play; what is yielded appends an RGB frame (H, W, 3) to it.

    Odd sizes, which H.264 with halved colour cannot hold, are padded by one repeated row or column.

    Args:
        path: The file; incomplete until the block has ended well.
        fps: Frames per second.
        threads: Of the encoder; 0: as many as it likes.

    Raises:
        DataError: There is no frame, or frames differ in size.
    """
    import av

    with av.open(f"file:{path}", "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.codec_context.thread_count = threads
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "20", "preset": "veryfast"}
        shape: tuple[int, ...] = ()

        def write(frame: Frame) -> None:
            nonlocal shape
            even = np.pad(frame, [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)], mode="edge")
            if not shape:
                shape = even.shape
                stream.height, stream.width = shape[:2]
            if even.shape != shape:
                raise DataError(f"{path}: its frames differ in size", "write one video per size")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))

        yield write
        if not shape:
            raise DataError(f"{path}: there is no frame to write", "give at least one frame")
        container.mux(stream.encode())


def drawn(frame: Frame, number: int, layers: Sequence[Layer], above: Frame | None = None) -> Frame:
    """A frame with the masks of all layers over it, and with what is to stand above it."""
    for layer in layers:
        frame = overlay(frame, layer.mask(number), layer.colour)
    return frame if above is None else np.concatenate([above, frame])


def _told(number: int, layers: Sequence[Layer]) -> str:
    """What stands under a frame of a sheet."""
    if len(layers) > 1:
        return f"frame {number}"
    share = layers[0].mask(number).mean()
    return f"frame {number}: {share:.1%} of the frame" if share else f"frame {number}: no mask"


def _cell_size(size: tuple[int, ...], columns: int) -> tuple[int, int]:
    """Width and height of one frame on a sheet of about 1600 pixels: small frames grow, large ones shrink."""
    height, width = size
    factor = min(1600 / columns / width, 3.0)
    return max(1, round(width * factor)), max(1, round(height * factor))
