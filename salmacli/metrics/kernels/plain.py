"""The kernels in NumPy: whole arrays of words at a time."""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
# First row of mask and boundary, first row of what is near, first word and words of a row that count; pixels of the
# mask and of its boundary; and the three of them as rows of words: mask, boundary, near.
Planes = tuple[int, int, int, int, int, int, Words, Words, Words]

# What runs_of_text found.
FINE, BAD_CHARACTER, CUT_OFF, TOO_LONG, NEGATIVE = range(5)

_ONE = np.uint64(1)
_AT_ONCE = 1 << 16  # pixels
_ALL = ~np.uint64(0)
# How many bits the numbers 0 to 255 have; NumPy counts them itself from version 2 on.
_BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def popcount(words: Words) -> int:
    """Number of set bits."""
    if hasattr(np, "bitwise_count"):
        return int(np.bitwise_count(words).sum(dtype=np.int64))
    return int(_BITS[np.ascontiguousarray(words).view(np.uint8)].sum(dtype=np.int64))


def fill(runs: NDArray[np.int64], length: int) -> Words:
    """A stream of bits from run lengths, background first.

    Args:
        runs: Lengths that are not negative.
        length: Words of the stream.
    """
    values = np.zeros(runs.size, dtype=np.uint8)
    values[1::2] = 1
    packed = np.packbits(np.repeat(values, runs), bitorder="little")
    stream = np.zeros(length * 8, dtype=np.uint8)
    stream[: packed.size] = packed
    return stream.view(np.uint64)


def pick(labels: NDArray[np.uint8], label: int) -> Words:
    """A stream of bits of one object in a picture of object numbers.

    Args:
        labels: (H, W) object numbers, at least one.
        label: The object's number.
    """
    height, width = labels.shape
    stream = np.zeros((labels.size + 63) // 64 * 8, dtype=np.uint8)
    # A few rows at a time, whole bytes of the stream: what stays in the cache needs no new pages either.
    rows = max(_AT_ONCE // width // 8, 1) * 8
    for top in range(0, height, rows):
        packed = np.packbits(labels[top : top + rows] == label, bitorder="little")
        begin = top * width // 8
        stream[begin : begin + packed.size] = packed
    return stream.view(np.uint64)


def runs_of_text(text: NDArray[np.uint8]) -> tuple[int, NDArray[np.int64]]:
    """Run lengths from COCO's string form.

    A character holds 5 bits from 48 up, the sixth bit says that more follow; from the fourth run on, the
    difference to the run two before is stored.

    Args:
        text: The string's bytes.

    Returns:
        ``FINE`` and the run lengths, or what is wrong and nothing.

    Source: the format of cocoapi's ``maskApi.c`` (``rleFrString``).
    """
    nothing = np.zeros(0, dtype=np.int64)
    bits = text.astype(np.int64) - 48
    if bits.size == 0 or bits.min() < 0 or bits.max() > 63:
        return BAD_CHARACTER, nothing
    last = np.flatnonzero(bits < 32)
    if last.size == 0 or last[-1] != bits.size - 1:
        return CUT_OFF, nothing
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 7:
        return TOO_LONG, nothing
    position = np.arange(bits.size) - np.repeat(first, lengths)
    runs = np.add.reduceat((bits & 31) << (5 * position), first)
    runs -= np.where(bits[last] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return (NEGATIVE, nothing) if runs.min() < 0 else (FINE, runs)


def trace(words: Words, rows: int, columns: int, radius: int) -> Planes:
    """Prepare a mask for counting: its boundary, and what lies near its boundary.

    Args:
        words: (ceil(rows * columns / 64),) the stream of bits.
        rows: Rows of the stream.
        columns: Columns of the stream.
        radius: Pixels (Euclidean, inclusive) that are near.

    Returns:
        As :data:`Planes` says; the rows of words may have more words than count.
    """
    set_words = np.flatnonzero(words)
    if set_words.size == 0:
        nothing = np.zeros((0, 0), dtype=np.uint64)
        return 0, 0, 0, 0, 0, 0, nothing, nothing, nothing
    first = int(set_words[0]) * 64 // columns
    last = min((int(set_words[-1]) * 64 + 63) // columns, rows - 1)
    # A boundary pixel may stand one row above and one column left of the mask, a near one a radius further.
    top, bottom = max(first - 1 - radius, 0), min(last + 1 + radius, rows)
    lines = _lines(words, top, bottom, columns)
    in_use = np.flatnonzero(lines.any(axis=0))
    left = max(int(in_use[0]) * 64 - 1 - radius, 0) // 64
    right = min((int(in_use[-1]) * 64 + 64 + radius) // 64 + 1, lines.shape[1])
    mask, boundary = lines[:, left:right], _boundary(lines, bottom == rows, columns)[:, left:right]
    near = _near(boundary, radius)
    return top, top, left, right - left, popcount(mask), popcount(boundary), mask, boundary, near


def overlap(prediction: Planes, truth: Planes) -> tuple[int, int, int, int, int, int]:
    """What two traced masks share.

    Returns:
        Pixels in both masks and in either; boundary pixels of truth and of prediction; and how many of either lie
        near the other's boundary.
    """
    head, top, left, n, area, length, mask, boundary, near = prediction
    true_head, true_top, true_left, true_n, true_area, true_length, true_mask, true_boundary, true_near = truth
    both = _shared(mask, head, left, n, true_mask, true_head, true_left, true_n)
    near_truth = _shared(boundary, head, left, n, true_near, true_top, true_left, true_n)
    near_prediction = _shared(true_boundary, true_head, true_left, true_n, near, top, left, n)
    return both, area + true_area - both, true_length, length, near_prediction, near_truth


def count_labels(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8], number: int, radius: int
) -> NDArray[np.int64]:
    """:func:`count` of the objects 1 to ``number`` of two pictures of object numbers: (number, 6)."""
    rows, columns = truth.shape
    counted = [count(pick(prediction, n), pick(truth, n), rows, columns, radius) for n in range(1, number + 1)]
    return np.array(counted, dtype=np.int64).reshape(number, 6)


def _shared(
    one: Words, top: int, left: int, n: int, other: Words, other_top: int, other_left: int, other_n: int
) -> int:
    """Pixels of two planes, each with its place in the picture."""
    y0, y1 = max(top, other_top), min(top + one.shape[0], other_top + other.shape[0])
    x0, x1 = max(left, other_left), min(left + n, other_left + other_n)
    if y0 >= y1 or x0 >= x1:
        return 0
    a = one[y0 - top : y1 - top, x0 - left : x1 - left]
    return popcount(a & other[y0 - other_top : y1 - other_top, x0 - other_left : x1 - other_left])


def count(prediction: Words, truth: Words, rows: int, columns: int, radius: int) -> tuple[int, int, int, int, int, int]:
    """:func:`overlap` of two masks that are traced for nothing else; see :func:`trace` for the arguments."""
    return overlap(trace(prediction, rows, columns, radius), trace(truth, rows, columns, radius))


def _lines(words: Words, top: int, bottom: int, columns: int) -> Words:
    """Rows of the stream, each from the first bit of a word on: (bottom - top, n)."""
    n, words = (columns + 63) // 64, np.append(words, np.uint64(0))
    begin = np.arange(top, bottom, dtype=np.int64)[:, None] * columns + np.arange(n, dtype=np.int64) * 64
    place = begin >> 6
    shift = (begin & 63).astype(np.uint64)
    # Twice, since a shift by the whole width of a word is not defined.
    lines = (words[place] >> shift) | ((words[place + 1] << (np.uint64(63) - shift)) << _ONE)
    rest = columns % 64
    if rest:
        lines[:, -1] &= (_ONE << np.uint64(rest)) - _ONE
    return np.asarray(lines, dtype=np.uint64)


def _boundary(lines: Words, at_end: bool, columns: int) -> Words:
    """Pixels that differ from their right, lower or lower right neighbour.

    The last column and, with ``at_end``, the last row have themselves as the neighbour that is not there.
    """
    right = lines >> _ONE
    right[:, :-1] |= lines[:, 1:] << np.uint64(63)
    right[:, -1] |= lines[:, -1] & (_ONE << np.uint64((columns - 1) % 64))
    below, below_right = lines.copy(), right.copy()
    below[:-1], below_right[:-1] = lines[1:], right[1:]
    if not at_end:
        below[-1], below_right[-1] = 0, 0
    return np.asarray((lines ^ right) | (lines ^ below) | (lines ^ below_right), dtype=np.uint64)


def _near(boundary: Words, radius: int) -> Words:
    """Dilation by a disk.

    The disk's rows are widest in the middle. What is taken in first is widened by every later step, so the rows
    are taken in from the middle outwards, each time after widening by the difference in width.
    """
    near, half = boundary.copy(), radius
    for offset in range(1, radius + 1):
        narrower = isqrt(radius * radius - offset * offset)
        near = _widen(near, half - narrower)
        half = narrower
        near[offset:] |= boundary[:-offset]
        near[:-offset] |= boundary[offset:]
    return near


def _widen(lines: Words, by: int) -> Words:
    """Dilation along the rows by ``by`` pixels.

    Steps grow with what is done, never beyond it: they must not lean on pixels outside the picture, which are lost.
    """
    done = 0
    while done < by:
        step = min(done + 1, by - done, 63)
        up, down = np.uint64(step), np.uint64(64 - step)
        wide = lines | (lines << up) | (lines >> up)
        wide[:, 1:] |= lines[:, :-1] >> down
        wide[:, :-1] |= lines[:, 1:] << down
        lines, done = wide, done + step
    return lines
