"""Masks drawn over frames: one picture to look at, and a short video."""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from salmacli.errors import DataError

Colour = tuple[int, int, int]
RED: Colour = (235, 45, 75)

_OPACITY = 0.45
_GAP = 6  # pixels between frames on a sheet
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


def overlay(frame: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour = RED) -> NDArray[np.uint8]:
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
    if mask.any():
        tint = np.asarray(colour, dtype=np.float32)
        drawn[mask] = ((1 - _OPACITY) * frame[mask] + _OPACITY * tint).astype(np.uint8)
        width = max(1, round(min(mask.shape) / 270))  # the same to the eye at every size
        drawn[mask & ~binary_erosion(mask, iterations=width)] = colour
    return drawn


def overlay_sheet(
    frames: Sequence[NDArray[np.uint8]],
    masks: Sequence[NDArray[np.bool_]],
    caption: str,
    numbers: Sequence[int] | None = None,
    limit: int = 8,
) -> Image.Image:
    """One picture of frames spread evenly over the clip, with their masks.

    Args:
        frames: RGB images (H, W, 3), all of one size.
        masks: A mask (H, W) per frame.
        caption: Usually the sentence; stands above the frames.
        numbers: The frames' numbers in the video; 0, 1, … by default.
        limit: At most so many frames are drawn.

    Raises:
        DataError: There is no frame, or not one mask per frame.
    """
    if not frames or len(frames) != len(masks):
        raise DataError(f"{len(frames)} frames and {len(masks)} masks cannot be drawn", "give one mask per frame")
    numbers = range(len(frames)) if numbers is None else numbers
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(limit, len(frames))).round().astype(int)).tolist()
    columns = len(chosen) if len(chosen) <= 3 else 4 if len(chosen) > 4 else 2
    rows = -(-len(chosen) // columns)

    width, height = _cell_size(frames[0].shape[:2], columns)
    letter = max(12, width // 22)
    font = ImageFont.load_default(size=letter)
    line = round(letter * 1.4)
    sheet_width = columns * (width + _GAP) + _GAP
    lines = textwrap.wrap(caption, max(10, int(sheet_width / (letter * 0.55)))) or [""]
    head = len(lines) * line + 2 * _GAP
    sheet = Image.new("RGB", (sheet_width, head + rows * (height + line + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((_GAP, _GAP), "\n".join(lines), fill=_INK, font=font, spacing=line - letter)
    for place, index in enumerate(chosen):
        left = _GAP + place % columns * (width + _GAP)
        top = head + place // columns * (height + line + _GAP)
        picture = Image.fromarray(overlay(frames[index], masks[index]))
        sheet.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        share = f"{masks[index].mean():.1%} of the frame" if masks[index].any() else "no mask"
        draw.text((left, top + height + 1), f"frame {numbers[index]}: {share}", fill=_INK, font=font)
    return sheet


def write_video(path: str | os.PathLike[str], frames: Iterable[NDArray[np.uint8]], fps: float = 10.0) -> None:
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
                    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
                    stream.height, stream.width = even.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    stream.options = {"crf": "20"}
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


def _cell_size(size: tuple[int, ...], columns: int) -> tuple[int, int]:
    """Width and height of one frame on a sheet of about 1600 pixels: small frames grow, large ones shrink."""
    height, width = size
    factor = min(1600 / columns / width, 3.0)
    return round(width * factor), round(height * factor)
