"""The kernels compiled by Numba: word by word, without leaving the first cache where a mask is small.

Loops run over slices from 0 on and words are shifted by words, so that LLVM sees no index that could wrap around
and works on several words at once.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from salmacli.metrics.kernels.plain import BAD_CHARACTER, CUT_OFF, FINE, NEGATIVE, TOO_LONG


def _compiled(function: Any) -> Any:
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # neither the package nor the user has a folder to keep what was compiled
        return numba.njit(nogil=True, error_model="numpy")(function)


_ZERO, _ONE, _TWO, _FOUR = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(4)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_HALVES, _PAIRS, _NIBBLES = (np.uint64(int(digits * 8, 16)) for digits in ("55", "33", "0F"))
_BYTES, _TOP = np.uint64(0x0101010101010101), np.uint64(56)
_LAST = np.uint64(63)


@_compiled
def _ones(word):
    """Set bits of one word; LLVM knows this form and uses the processor's own instruction."""
    word = word - ((word >> _ONE) & _HALVES)
    word = (word & _PAIRS) + ((word >> _TWO) & _PAIRS)
    return (((word + (word >> _FOUR)) & _NIBBLES) * _BYTES) >> _TOP


@_compiled
def popcount(words):
    """See ``plain.popcount``; one axis."""
    total = _ZERO
    for i in range(words.size):
        total += _ones(words[i])
    return np.int64(total)


@_compiled
def fill(runs, length):
    """See ``plain.fill``."""
    words = np.zeros(length, dtype=np.uint64)
    end = 0
    for k in range(runs.size):
        begin = end
        end += runs[k]
        if k & 1 and end > begin:
            first, last = begin >> 6, (end - 1) >> 6
            head = _ALL << np.uint64(begin & 63)
            tail = _ALL >> (_LAST - np.uint64((end - 1) & 63))
            if first == last:
                words[first] |= head & tail
            else:
                words[first] |= head
                for i in range(first + 1, last):
                    words[i] = _ALL
                words[last] |= tail
    return words


@_compiled
def runs_of_text(text):
    """See ``plain.runs_of_text``."""
    runs = np.empty(text.size, dtype=np.int64)
    nothing = runs[:0]
    if text.size == 0:
        return BAD_CHARACTER, nothing
    # Found first, as the plain kernel does, so that a broken string is called the same.
    for i in range(text.size):
        if text[i] < 48 or text[i] > 111:
            return BAD_CHARACTER, nothing
    if text[text.size - 1] >= 80:
        return CUT_OFF, nothing
    n, shift, value, negative = 0, 0, np.int64(0), False
    for i in range(text.size):
        bits = np.int64(text[i]) - 48
        if shift > 30:
            return TOO_LONG, nothing
        value |= (bits & 31) << shift
        shift += 5
        if bits < 32:
            if bits & 16:
                value -= np.int64(1) << shift
            if n > 2:
                value += runs[n - 2]
            negative = negative or value < 0
            runs[n] = value
            n, shift, value = n + 1, 0, np.int64(0)
    if negative:
        return NEGATIVE, nothing
    return FINE, runs[:n]


@_compiled
def _first_bit(word):
    bit = 0
    while not word & _ONE:
        word, bit = word >> _ONE, bit + 1
    return bit


@_compiled
def _last_bit(word):
    bit = -1
    while word:
        word, bit = word >> _ONE, bit + 1
    return bit


@_compiled
def _copy_lines(words, top, columns, lines, together):
    """Rows of the stream from ``top`` on, each from the first bit of a word on, and all of them laid together.

    Args:
        words: The stream.
        top: The first row.
        columns: Columns of the stream.
        lines: (rows, n) to be filled.
        together: (n,) to be filled.
    """
    rows, n = lines.shape
    rest = _ALL >> np.uint64(n * 64 - columns)
    for y in range(rows):
        begin = (top + y) * columns
        shift = np.uint64(begin & 63)
        here, line = words[begin >> 6 :], lines[y]
        # The last row may end in the stream's last word.
        inside = min(n, here.size - 1)
        for k in range(inside):
            line[k] = (here[k] >> shift) | ((here[k + 1] << (_LAST - shift)) << _ONE)
        for k in range(inside, n):
            line[k] = here[k] >> shift
        line[n - 1] &= rest
        for k in range(n):
            together[k] |= line[k]


@_compiled
def _shift_right(flat, out):
    """Every pixel's right neighbour; the word behind ``flat[:-1]`` is its end."""
    for i in range(out.size):
        out[i] = (flat[i] >> _ONE) | (flat[i + 1] << _LAST)


@_compiled
def _compare(flat, right, below, below_right, out):
    for i in range(out.size):
        word = flat[i]
        out[i] = (word ^ right[i]) | (word ^ below[i]) | (word ^ below_right[i])


@_compiled
def _widen(source, step, out):
    """Dilation along the flat rows by ``step`` pixels; the words around ``source[1:-1]`` are its ends."""
    up, down = np.uint64(step), np.uint64(64 - step)
    for i in range(out.size):
        word = source[i + 1]
        out[i] = word | (word << up) | (word >> up) | (source[i] >> down) | (source[i + 2] << down)


@_compiled
def _heighten(edges, above, below, out, near):
    """Dilation along the columns by as many rows as lie between the slices; what comes out is near, too."""
    for i in range(out.size):
        word = edges[i] | above[i] | below[i]
        out[i] = word
        near[i] |= word


@_compiled
def _half(radius, offset):
    """Half the width of the disk's row: floor(sqrt(radius² - offset²))."""
    half, square = radius, radius * radius - offset * offset
    while half * half > square:
        half -= 1
    return half


@_compiled
def _near(boundary, radius, stride, out):
    """Dilation by a disk, which is a union of rectangles: the lower, the wider.

    What is near so far is widened from one rectangle's width to the next one's, while the boundary is heightened on
    its own, both in steps that grow with what is done: never beyond it, since a step must not lean on pixels outside
    the picture, which are not kept.

    Args:
        boundary: Flat rows of ``stride`` words, whose last words are free for what is widened.
        radius: In pixels.
        stride: Words of a row.
        out: Flat, to be filled.
    """
    size, margin = boundary.size, radius * stride
    # Rows before and behind, and of what is near a word, so that none needs to ask whether it has neighbours.
    edges, higher = np.zeros(size + 2 * margin, dtype=np.uint64), np.zeros(size + 2 * margin, dtype=np.uint64)
    near, wider = np.zeros(size + 2, dtype=np.uint64), np.zeros(size + 2, dtype=np.uint64)
    edges[margin : margin + size] = boundary
    near[1:-1] = boundary
    half, height = radius, 0
    for offset in range(1, radius + 1):
        narrower = _half(radius, offset)
        if offset < radius and _half(radius, offset + 1) == narrower:
            continue  # the next row is as wide: a higher rectangle holds this one
        done = 0
        while done < half - narrower:
            step = min(done + 1, half - narrower - done, 63)
            _widen(near, step, wider[1:-1])
            near, wider = wider, near
            done += step
        half = narrower
        while height < offset:
            step = min(height + 1, offset - height)
            by = step * stride
            _heighten(
                edges[margin : margin + size],
                edges[margin - by :],
                edges[margin + by :],
                higher[margin : margin + size],
                near[1:-1],
            )
            edges, higher = higher, edges
            height += step
    out[:] = near[1:-1]


@_compiled
def trace(words, rows, columns, radius):
    """See ``plain.trace``."""
    begin, end = 0, words.size
    while begin < end and not words[begin]:
        begin += 1
    if begin == end:
        return 0, 0, 0, 0, 0, np.zeros((3, 0, 0), dtype=np.uint64)
    while not words[end - 1]:
        end -= 1
    first = (begin * 64 + _first_bit(words[begin])) // columns
    last = ((end - 1) * 64 + _last_bit(words[end - 1])) // columns
    head = max(first - 1, 0)
    held = last + 1 - head
    lines = np.empty((held, (columns + 63) // 64), dtype=np.uint64)
    together = np.zeros(lines.shape[1], dtype=np.uint64)
    _copy_lines(words, head, columns, lines, together)

    # Words in use, grown by the boundary (one pixel to the left) and by what is near it.
    x0, x1 = 0, together.size - 1
    while not together[x0]:
        x0 += 1
    while not together[x1]:
        x1 -= 1
    left = max(x0 * 64 + _first_bit(together[x0]) - 1 - radius, 0) >> 6
    right = min((x1 * 64 + _last_bit(together[x1]) + radius) >> 6, together.size - 1) + 1
    n = right - left
    stride = n + max((radius + 63) // 64, 1)
    top, bottom = max(head - radius, 0), min(last + 1 + radius, rows)
    planes = np.zeros((3, bottom - top, stride), dtype=np.uint64)
    mask, boundary, near = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)

    # The held rows once more with one below, which is the last row itself where the picture ends.
    flat = np.zeros((held + 1) * stride + 1, dtype=np.uint64)
    shifted = np.zeros((held + 1) * stride, dtype=np.uint64)
    for y in range(held):
        line, place = lines[y, left:right], flat[y * stride :]
        for k in range(n):
            place[k] = line[k]
    if last + 1 == rows:
        flat[held * stride : (held + 1) * stride] = flat[(held - 1) * stride : held * stride]
    _shift_right(flat, shifted)
    for y in range(held + 1):
        # Between the rows nothing is set, although the row below begins there.
        shifted[(y + 1) * stride - 1] = _ZERO
    if right == together.size:
        # The last column is its own right neighbour.
        at = _ONE << np.uint64((columns - 1) & 63)
        for y in range(held + 1):
            shifted[y * stride + n - 1] |= flat[y * stride + n - 1] & at
    inner, size = head - top, held * stride
    mask[inner * stride : inner * stride + size] = flat[:size]
    _compare(flat, shifted, flat[stride:], shifted[stride:], boundary[inner * stride : inner * stride + size])
    area, length = popcount(mask), popcount(boundary)
    if length:
        _near(boundary, radius, stride, near)
    return top, left, n, area, length, planes


@_compiled
def _overlap(top, left, n, planes, other_top, other_left, other_n, others):
    y0, y1 = max(top, other_top), min(top + planes.shape[1], other_top + others.shape[1])
    x0, x1 = max(left, other_left), min(left + n, other_left + other_n)
    both, one_near, other_near = _ZERO, _ZERO, _ZERO
    for y in range(y0, y1):
        a, b = planes[:, y - top, x0 - left :], others[:, y - other_top, x0 - other_left :]
        for k in range(x1 - x0):
            both += _ones(a[0, k] & b[0, k])
            one_near += _ones(a[1, k] & b[2, k])
            other_near += _ones(b[1, k] & a[2, k])
    return np.int64(both), np.int64(one_near), np.int64(other_near)


@_compiled
def overlap(one, other):
    """See ``plain.overlap``."""
    top, left, n, area, length, planes = one
    other_top, other_left, other_n, other_area, other_length, others = other
    both, one_near, other_near = _overlap(top, left, n, planes, other_top, other_left, other_n, others)
    return both, area + other_area - both, other_length, length, other_near, one_near


@_compiled
def count(prediction, truth, rows, columns, radius):
    """See ``plain.count``."""
    return overlap(trace(prediction, rows, columns, radius), trace(truth, rows, columns, radius))
