"""Masks drawn over frames: one picture to look at, and a short video."""

from __future__ import annotations

import colorsys
import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from salmacli.data.ahead import in_order
from salmacli.data.frames import Frame, FrameSource
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


def overlay_sheet(source: FrameSource, layers: Sequence[Layer], limit: int = 8) -> Image.Image:
    """One picture of frames spread evenly over a video, with their masks, under the sentences.

    Args:
        source: Only the frames that are drawn are read.
        layers: At least one.
        limit: At most so many frames are drawn.

    Raises:
        DataError: There is no frame, or one cannot be read.
    """
    if not len(source):
        raise DataError(f"{source.path} has no frames to draw", "give at least one frame")
    chosen = np.unique(np.linspace(0, len(source) - 1, min(limit, len(source))).round().astype(int)).tolist()
    columns = len(chosen) if len(chosen) <= 3 else 4 if len(chosen) > 4 else 2
    width, height = _cell_size(source.size, columns)
    letter = min(28, max(12, width // 22))
    line = round(letter * 1.4)
    sheet_width = columns * (width + _GAP) + _GAP
    head = caption([(layer.text, layer.colour) for layer in layers], sheet_width, max(16, letter), _MOST_LINES, each=3)
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (sheet_width, head.height + rows * (height + line + _GAP) + _GAP), PAPER)
    sheet.paste(head, (0, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=letter)
    for place, (number, frame) in enumerate(zip(chosen, source.read(chosen, ahead=1), strict=True)):
        left = _GAP + place % columns * (width + _GAP)
        top = head.height + place // columns * (height + line + _GAP)
        picture = Image.fromarray(_drawn(frame, number, layers))
        sheet.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        draw.text((left, top + height + 1), _told(number, layers), fill=INK, font=font)
    return sheet


def overlay_frames(source: FrameSource, layers: Sequence[Layer]) -> Generator[Frame, None, None]:
    """Every frame of a video with its masks, under a strip with the sentences; few frames are held at once."""
    height, width = source.size
    letter = max(13, min(width // 45, height // 12))
    most = max(2, round(0.4 * height / (1.4 * letter)))
    each = 2 if 2 * len(layers) <= most else 1
    strip = np.asarray(caption([(layer.text, layer.colour) for layer in layers], width, letter, most, each))

    def draw(one: tuple[int, Frame]) -> Frame:
        number, frame = one
        return np.concatenate([strip, _drawn(frame, number, layers)])

    with closing(in_order(draw, enumerate(source), threads=2, ahead=4)) as frames:
        yield from frames


def write_video(path: str | os.PathLike[str], frames: Iterable[Frame], fps: float = 10.0) -> None:
    """Write RGB frames (H, W, 3) as an H.264 mp4 that browsers play, one frame in memory at a time.

    Odd sizes, which H.264 with halved colour cannot hold, are padded by one repeated row or column.

    Raises:
        DataError: There is no frame, or frames differ in size.
    """
    import av

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".mp4", dir=path.parent)
    os.close(handle)
    try:
        with av.open(name, "w") as container:
            stream = None
            for frame in frames:
                even = np.pad(frame, [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)], mode="edge")
                if stream is None:
                    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                    stream.height, stream.width = even.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    stream.options = {"crf": "20", "preset": "veryfast"}
                if even.shape[:2] != (stream.height, stream.width):
                    raise DataError(f"{path}: its frames differ in size", "write one video per size")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))
            if stream is None:
                raise DataError(f"{path}: there is no frame to write", "give at least one frame")
            container.mux(stream.encode())
        Path(name).chmod(0o644)
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _drawn(frame: Frame, number: int, layers: Sequence[Layer]) -> Frame:
    for layer in layers:
        frame = overlay(frame, layer.mask(number), layer.colour)
    return frame


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
