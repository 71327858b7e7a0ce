"""Pictures at the sizes that pretrained encoders were shown: bicubic, and large pictures as tiles."""

from __future__ import annotations

import numpy as np
from PIL import Image

MOST_TILES = 12


def bicubic(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (H, W, 3) with Pillow's bicubic filter, aspect not kept: (height, width, 3) uint8."""
    return np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def tiles(frame: np.ndarray, side: int, most: int = MOST_TILES) -> list[np.ndarray]:
    """Cut a picture into squares, row by row, and add the whole of it as a thumbnail when there are several.

    The grid of at most `most` tiles is the one whose aspect ratio is nearest to the picture's; of equally near ones the
    larger wins when the picture has more than half of its pixels. Source: InternVL's dynamic resolution.

    Args:
        frame: uint8 (H, W, 3).
        side: of the tiles, pixels.
        most: tiles at most, the thumbnail not counted.

    Returns:
        1 to most + 1 times (side, side, 3) uint8.
    """
    height, width = frame.shape[:2]
    rows, columns = _grid(height, width, side, most)
    large = bicubic(frame, rows * side, columns * side)
    cut = [
        large[row * side : (row + 1) * side, column * side : (column + 1) * side]
        for row in range(rows)
        for column in range(columns)
    ]
    return cut if len(cut) == 1 else [*cut, bicubic(frame, side, side)]


def shown_of(picture: np.ndarray, side: int, most: int) -> list[np.ndarray]:
    """What SALMA shows of a picture: its tiles and the whole of it, or with `most` 1 the picture as it is."""
    return tiles(picture, side, most) if most > 1 else [picture]


def _grid(height: int, width: int, side: int, most: int) -> tuple[int, int]:
    """(rows, columns) for a picture of that size."""
    grids = [(rows, count // rows) for count in range(1, most + 1) for rows in range(1, count + 1) if not count % rows]
    best, nearest = (1, 1), float("inf")
    for rows, columns in grids:  # from few tiles to many
        distance = abs(width / height - columns / rows)
        roomy = height * width > 0.5 * side * side * rows * columns
        if distance < nearest or (distance == nearest and roomy):
            best, nearest = (rows, columns), distance
    return best
