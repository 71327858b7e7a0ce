"""A benchmark at a glance: frames over time with the targets outlined, under the sentences that name them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

from salmacli.data import rle
from salmacli.data.benchmarks import Benchmark
from salmacli.data.frames import read_frame
from salmacli.data.records import Expression, Video

# Far from each other and from the colours of the synthetic things, as an outline between white and black.
_OUTLINES = ((255, 255, 255), (255, 0, 255), (0, 255, 160), (255, 170, 0), (0, 200, 255), (255, 60, 60))
_PAPER, _INK, _FAINT = (250, 250, 248), (30, 30, 30), (120, 120, 120)
_GAP, _LINE, _WIDTH = 8, 17, 230  # pixels: between cells, per line of text, of one frame on the sheet


def contact_sheet(benchmark: Benchmark, videos: int = 8, columns: int = 5, expressions: int = 6) -> Image.Image:
    """Draws the first videos of a benchmark, one row each.

    Args:
        benchmark: What to show; without public truth no outlines are drawn.
        videos: How many videos at most.
        columns: How many frames of each, spread evenly.
        expressions: How many sentences of each at most; outlines come in the colours of the dots before them.

    Raises:
        DataError: A frame or a mask cannot be read.
    """
    rows = [_row(benchmark, video, columns, expressions) for video in benchmark.videos[:videos]]
    width = max(row.width for row in rows) + 2 * _GAP
    sheet = Image.new("RGB", (width, sum(row.height + _GAP for row in rows) + _GAP), _PAPER)
    top = _GAP
    for row in rows:
        sheet.paste(row, (_GAP, top))
        top += row.height + _GAP
    return sheet


def _row(benchmark: Benchmark, video: Video, columns: int, limit: int) -> Image.Image:
    shown = video.expressions[:limit]
    truths = [benchmark.truth(video, expression) for expression in shown]
    chosen = np.unique(np.linspace(0, len(video.frames) - 1, min(columns, len(video.frames))).round()).astype(int)
    cells = [_cell(benchmark, video, int(index), truths) for index in chosen]
    text_height = _LINE * (1 + (len(shown) + 1) // 2) + 4
    width = columns * (_WIDTH + _GAP)
    row = Image.new("RGB", (width, text_height + max(cell.height for cell in cells)), _PAPER)
    _write(row, video, benchmark.split, shown)
    for place, cell in enumerate(cells):
        row.paste(cell, (place * (_WIDTH + _GAP), text_height))
    return row


def _write(row: Image.Image, video: Video, split: str, shown: Sequence[Expression]) -> None:
    draw = ImageDraw.Draw(row)
    font = ImageFont.load_default(size=13)
    draw.text((0, 0), f"{video.name} ({split}, {len(video.frames)} frames)", fill=_FAINT, font=font)
    for index, expression in enumerate(shown):
        left, top = index % 2 * row.width // 2, _LINE * (1 + index // 2)
        draw.ellipse((left, top + 4, left + 9, top + 13), fill=_OUTLINES[index % len(_OUTLINES)], outline=_INK)
        draw.text((left + 15, top), _caption(expression), fill=_INK, font=font)


def _caption(expression: Expression) -> str:
    notes = [str(expression.tags["category"])] if "category" in expression.tags else []
    if expression.kind != "referring":
        notes.append(expression.kind)
    if expression.tags.get("distractor"):
        notes.append("distractor")
    return f"{expression.text}  [{', '.join(notes)}]" if notes else expression.text


def _cell(benchmark: Benchmark, video: Video, index: int, truths: Sequence[list[rle.RLE] | None]) -> Image.Image:
    frame = read_frame(benchmark.frame_path(video, video.frames[index]))
    height = round(frame.shape[0] * _WIDTH / frame.shape[1])
    picture = np.array(Image.fromarray(frame).resize((_WIDTH, height), Image.Resampling.BICUBIC))
    rings: dict[str, int] = {}
    for number, truth in enumerate(truths):
        if truth is None:
            continue
        small = Image.fromarray(rle.decode(truth[index]))
        mask = np.asarray(small.resize((_WIDTH, height), Image.Resampling.NEAREST))
        # Several sentences may mean the same thing; each further ring lies outside the one before.
        depth = rings.get(str(truth[index]["counts"]), 0)
        rings[str(truth[index]["counts"])] = depth + 1
        inner = binary_dilation(mask, iterations=2 * depth) if depth else mask
        picture[binary_dilation(inner, iterations=2) & ~inner] = _OUTLINES[number % len(_OUTLINES)]
    return Image.fromarray(picture)
