"""Random pairs of masks that are the same with every NumPy.

Only the raw stream of PCG64 is used, which NumPy promises to keep, and arithmetic on integers. Pairs are numbered, and
each is drawn from its own number, so that one pair can be made again alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

PAIRS, CHUNK = 50_000, 1_000
SEED = 20171
# Mostly small, so that many are quick; some over the whole range, and some at the ends of machine words.
LIMITS = (6, 12, 12, 25, 25, 40, 40, 70, 130, 300)
WORD_ENDS = (7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257)


class Draw:
    """Numbers and noise of one seed."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64([SEED, *seed])

    def below(self, limit: int) -> int:
        return int(self._bits.random_raw()) % limit

    def between(self, low: int, high: int) -> int:
        """Both ends included."""
        return low + self.below(high - low + 1)

    def noise(self, height: int, width: int, share: int) -> Mask:
        """Every pixel alone is foreground with probability share / 256."""
        words = self._bits.random_raw(height * width // 8 + 1).astype("<u8")
        return (words.view(np.uint8)[: height * width] < share).reshape(height, width)


def pair(number: int) -> tuple[Mask, Mask, int | None]:
    """(prediction, truth, tolerance in pixels or None for the default) of one number."""
    draw = Draw(number)
    height, width = _side(draw), _side(draw)
    first = _mask(draw, height, width)
    second = _companion(draw, first)
    radius = None if draw.below(3) == 0 else draw.between(1, 40)
    return (first, second, radius) if draw.below(2) else (second, first, radius)


def label_video(number: int, frames: int, objects: int, void: bool = False) -> NDArray[np.uint8]:
    """(frames, 30, 50) label pictures: boxes that wander, later ones in front, void sprinkled where asked for."""
    draw = Draw(number, 1)
    height, width = 30, 50
    video = np.zeros((frames, height, width), dtype=np.uint8)
    for label in range(1, objects + 1):
        top, left = draw.between(0, height - 8), draw.between(0, width - 8)
        for picture in video:
            top = min(max(top + draw.between(-2, 2), 0), height - 4)
            left = min(max(left + draw.between(-2, 2), 0), width - 4)
            picture[top : top + draw.between(4, 12), left : left + draw.between(4, 16)] = label
        video[0, label, :3] = label  # every object is in the first frame, which says how many there are
    if void:
        for picture in video:
            picture[draw.noise(height, width, 8)] = 255
            top = draw.below(height)
            picture[top : top + 3, draw.below(width) :] = 255
    return video


def _side(draw: Draw) -> int:
    if draw.below(8) == 0:
        return WORD_ENDS[draw.below(len(WORD_ENDS))]
    return 1 + draw.below(LIMITS[draw.below(len(LIMITS))])


def _mask(draw: Draw, height: int, width: int) -> Mask:
    """One annotation, several that overlap united, or the complement of one."""
    kind = draw.below(8)
    if kind == 0:
        return np.logical_or.reduce([_shape(draw, height, width) for _ in range(draw.between(2, 5))])
    if kind == 1:
        return ~_shape(draw, height, width)
    return _shape(draw, height, width)


def _shape(draw: Draw, height: int, width: int) -> Mask:
    mask = np.zeros((height, width), dtype=np.bool_)
    rows, columns = np.ogrid[:height, :width]
    kind = draw.below(20)
    if kind == 0:
        pass  # empty
    elif kind == 1:
        mask[:] = True
    elif kind <= 4:
        mask = draw.noise(height, width, (1, 2, 4, 16, 64, 128, 192, 240, 254)[draw.below(9)])
    elif kind == 5:
        mask[[draw.below(height) for _ in range(draw.between(1, 3))]] = True
    elif kind == 6:
        mask[:, [draw.below(width) for _ in range(draw.between(1, 3))]] = True
    elif kind == 7:
        rise, run, start = draw.between(1, 4), draw.between(-4, 4), draw.below(height + width)
        mask = abs(rise * rows + run * columns - start) < draw.between(1, 4)
    elif kind == 8:
        period = draw.between(2, 9)
        mask = ((rows if draw.below(2) else columns) + (columns if draw.below(3) == 0 else 0)) % period == 0
        mask = np.broadcast_to(mask, (height, width)).copy()
    elif kind <= 11:
        for _ in range(draw.between(1, 4)):
            mask[draw.below(height), draw.below(width)] = True
    elif kind <= 13:
        thickness = draw.between(1, 3)
        for side in range(4):
            if draw.below(2):
                turned = np.rot90(mask, side)  # a view
                start = draw.below(turned.shape[1])
                turned[:thickness, start : start + draw.between(1, turned.shape[1])] = True
    elif kind <= 15:
        top, left = draw.between(-height // 2, height - 1), draw.between(-width // 2, width - 1)
        bottom, right = top + draw.between(1, height), left + draw.between(1, width)
        mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    else:
        y, x = draw.below(height), draw.below(width)
        for _ in range(draw.between(1, 6)):  # a blob of disks, each near the one before
            radius = draw.between(1, max(2, min(height, width) // 3))
            mask |= (rows - y) ** 2 + (columns - x) ** 2 <= radius * radius
            y, x = y + draw.between(-radius, radius), x + draw.between(-radius, radius)
    return mask


def _companion(draw: Draw, mask: Mask) -> Mask:
    """What a mask is compared with: itself changed a little or much, or something else."""
    height, width = mask.shape
    kind = draw.below(12)
    if kind == 0:
        return mask.copy()
    if kind == 1:
        return ~mask
    if kind <= 4:
        reach = draw.between(1, 12)
        return _shifted(mask, draw.between(-reach, reach), draw.between(-reach, reach))
    if kind == 5:
        return mask ^ draw.noise(height, width, draw.between(1, 12))
    if kind == 6:
        return mask | _shifted(mask, draw.between(0, 3), draw.between(0, 3))
    if kind == 7:
        return mask & _mask(draw, height, width)
    return _mask(draw, height, width)


def _shifted(mask: Mask, down: int, right: int) -> Mask:
    """What leaves the picture is lost, what enters is background."""
    height, width = mask.shape
    down, right = min(max(down, -height), height), min(max(right, -width), width)
    out = np.zeros_like(mask)
    out[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = mask[
        max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return out
