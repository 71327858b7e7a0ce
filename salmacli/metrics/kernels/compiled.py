"""The kernels compiled by Numba: word by word, without leaving the first cache where a mask is small.

Loops run over slices from 0 on and words are shifted by words, so that LLVM sees no index that could wrap around
and works on several words at once. All stands in one file, because what Numba keeps compiled is made anew when the file
of a function changes, and not when one that it calls does.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.lib.stride_tricks import as_strided

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
_LAST, _WIDTH, _SEVEN = np.uint64(63), np.uint64(64), np.uint64(7)
_LOW = np.uint64(0x7F7F7F7F7F7F7F7F)  # all but the highest bit of every byte
_GATHER = np.uint64(0x0102040810204080)  # times a word of bytes 0 or 1, it has them in its highest byte


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
def _pick(flat, stride, rows, columns, label):
    """See ``plain.pick``; ``flat`` holds rows of ``stride`` bytes, the last perhaps shorter."""
    words = np.zeros((rows * columns + 63) // 64, dtype=np.uint64)
    wanted, whole = np.uint64(label) * _BYTES, columns // 8
    for y in range(rows):
        row = flat[y * stride : y * stride + columns]
        eights = row[: whole * 8].view(np.uint64)
        any_seen = _ZERO
        for i in range(whole):
            any_seen |= _equal(eights[i], wanted)
        begin = y * columns
        if any_seen:
            for i in range(whole):
                equal = _equal(eights[i], wanted)
                if equal:
                    place = begin + 8 * i
                    shift = np.uint64(place & 63)
                    bits = (equal >> _SEVEN) * _GATHER >> _TOP
                    words[place >> 6] |= bits << shift
                    if shift > _TOP:
                        words[(place >> 6) + 1] |= bits >> (_WIDTH - shift)
        for k in range(whole * 8, columns):
            if row[k] == label:
                place = begin + k
                words[place >> 6] |= _ONE << np.uint64(place & 63)
    return words


@_compiled
def _equal(eight, wanted):
    """The highest bit of each of eight bytes that are as wanted."""
    differs = eight ^ wanted
    return ~(((differs & _LOW) + _LOW) | differs | _LOW)


def pick(labels: Any, label: int) -> Any:
    """See ``plain.pick``."""
    return _pick(*_flat(labels), *labels.shape, label)


def _flat(labels: Any) -> Any:
    """Rows of bytes as one read-only line, and how far apart they begin; rows may have bytes between them."""
    height, width = labels.shape
    stride = labels.strides[0] if height > 1 else width
    if labels.strides[1] != 1 or stride < width:
        labels, stride = np.ascontiguousarray(labels), width
    return as_strided(labels, ((height - 1) * stride + width,), (1,), writeable=False), stride


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
def _heighten(edges, begin, end, by, out):
    """Dilation along the columns of the words from ``begin`` up to ``end`` by as many rows as ``by`` words are."""
    here, above, below, there = edges[begin:end], edges[begin - by :], edges[begin + by :], out[begin:end]
    for i in range(there.size):
        there[i] = here[i] | above[i] | below[i]


@_compiled
def _heighten_near(edges, begin, end, by, out, near):
    """The same, and what comes out is near."""
    here, above, below, there = edges[begin:end], edges[begin - by :], edges[begin + by :], out[begin:end]
    for i in range(there.size):
        word = here[i] | above[i] | below[i]
        there[i] = word
        near[i] |= word


@_compiled
def _half(radius, offset):
    """Half the width of the disk's row: floor(sqrt(radius² - offset²))."""
    half, square = radius, radius * radius - offset * offset
    while half * half > square:
        half -= 1
    return half


@_compiled
def _near(edges, margin, size, radius, stride):
    """Dilation by a disk, which is a union of rectangles: the lower, the wider.

    What is near so far is widened from one rectangle's width to the next one's, while the boundary is heightened on
    its own, both in steps that grow with what is done: never beyond it, since a step must not lean on pixels outside
    the picture, which are not kept.

    Args:
        edges: Flat rows of the boundary, with ``margin`` words of it before and behind those asked for.
        margin: Words of ``radius`` rows.
        size: Words of the rows asked for.
        radius: In pixels.
        stride: Words of a row, whose last ones are free for what is widened.

    Returns:
        ``size`` words.
    """
    higher, spare = np.empty(edges.size, dtype=np.uint64), np.empty(edges.size, dtype=np.uint64)
    near, wider = np.empty(size + 2, dtype=np.uint64), np.empty(size + 2, dtype=np.uint64)
    for buffer in (near, wider):
        buffer[0], buffer[size + 1] = _ZERO, _ZERO
    near[1:-1] = edges[margin : margin + size]
    half, height, lost, last = radius, 0, 0, margin + size
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
            # At either end so much has not seen all that is near it, and is not asked for.
            lost += by
            _heighten(edges, lost, margin, by, higher)
            _heighten_near(edges, margin, last, by, higher, near[1:-1])
            _heighten(edges, last, edges.size - lost, by, higher)
            edges, higher, spare = higher, spare, higher
            height += step
    return near[1:-1]


@_compiled
def _outline(words, rows, columns, radius):
    """A mask and its boundary.

    Returns:
        First row, first word and words of a row that count, pixels of the mask and of its boundary, the mask's rows of
        words, and flat the boundary's rows with ``2 * radius`` rows of zeros before and behind them.
    """
    begin, end = 0, words.size
    while begin < end and not words[begin]:
        begin += 1
    if begin == end:
        return 0, 0, 0, 0, 0, np.empty((0, 1), dtype=np.uint64), np.empty(0, dtype=np.uint64)
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
    size = held * stride

    # The held rows, between them words without a pixel, and one row below: the last one itself where the picture ends.
    mask = np.empty(size + stride + 1, dtype=np.uint64)
    for y in range(held):
        line, place = lines[y, left:right], mask[y * stride : (y + 1) * stride]
        for k in range(n):
            place[k] = line[k]
        for k in range(n, stride):
            place[k] = _ZERO
    mask[size:] = _ZERO
    if last + 1 == rows:
        mask[size : size + stride] = mask[size - stride : size]
    shifted = np.empty(size + stride, dtype=np.uint64)
    _shift_right(mask, shifted)
    for y in range(held + 1):
        shifted[(y + 1) * stride - 1] = _ZERO
    if right == together.size:
        # The last column is its own right neighbour.
        at = _ONE << np.uint64((columns - 1) & 63)
        for y in range(held + 1):
            shifted[y * stride + n - 1] |= mask[y * stride + n - 1] & at

    margin = 2 * radius * stride
    edges = np.empty(size + 2 * margin, dtype=np.uint64)
    edges[:margin], edges[margin + size :] = _ZERO, _ZERO
    boundary = edges[margin : margin + size]
    _compare(mask, shifted, mask[stride:], shifted[stride:], boundary)
    area, length = popcount(mask[:size]), popcount(boundary)
    return head, left, n, area, length, mask[:size].reshape((held, stride)), edges


@_compiled
def _planes(outline, begin, end, radius):
    """As ``plain.Planes`` says, with what is near in the rows from ``begin`` up to ``end``."""
    head, left, n, area, length, mask, edges = outline
    held, stride = mask.shape
    begin, end = max(begin, head - radius), min(end, head + held + radius)
    if not length or begin >= end:
        begin, end = 0, 0
        near = edges[:0]
    else:
        # The rows asked for, and around them those that they might be near to.
        around = edges[(begin - head + radius) * stride : (end - head + 3 * radius) * stride]
        near = _near(around, radius * stride, (end - begin) * stride, radius, stride)
    boundary = edges[2 * radius * stride : 2 * radius * stride + mask.size]
    return (
        head,
        begin,
        left,
        n,
        area,
        length,
        mask,
        boundary.reshape((held, stride)),
        near.reshape((end - begin, stride)),
    )


@_compiled
def trace(words, rows, columns, radius):
    """See ``plain.trace``."""
    return _planes(_outline(words, rows, columns, radius), 0, rows, radius)


@_compiled
def _shared(one, top, left, n, other, other_top, other_left, other_n):
    """Pixels of two planes, each with its place in the picture; the first has none between its rows."""
    y0, y1 = max(top, other_top), min(top + one.shape[0], other_top + other.shape[0])
    if y0 >= y1:
        return 0
    total = _ZERO
    if left == other_left and one.shape[1] == other.shape[1]:
        a, b = one[y0 - top : y1 - top].reshape(-1), other[y0 - other_top : y1 - other_top].reshape(-1)
        for i in range(a.size):
            total += _ones(a[i] & b[i])
        return np.int64(total)
    x0, x1 = max(left, other_left), min(left + n, other_left + other_n)
    for y in range(y0, y1):
        a, b = one[y - top, x0 - left :], other[y - other_top, x0 - other_left :]
        for k in range(x1 - x0):
            total += _ones(a[k] & b[k])
    return np.int64(total)


@_compiled
def overlap(prediction, truth):
    """See ``plain.overlap``."""
    head, top, left, n, area, length, mask, boundary, near = prediction
    true_head, true_top, true_left, true_n, true_area, true_length, true_mask, true_boundary, true_near = truth
    both = _shared(mask, head, left, n, true_mask, true_head, true_left, true_n)
    near_truth = _shared(boundary, head, left, n, true_near, true_top, true_left, true_n)
    near_prediction = _shared(true_boundary, true_head, true_left, true_n, near, top, left, n)
    return both, area + true_area - both, true_length, length, near_prediction, near_truth


@_compiled
def count(prediction, truth, rows, columns, radius):
    """See ``plain.count``; what is near is looked for only where the other mask has a boundary."""
    one, other = _outline(prediction, rows, columns, radius), _outline(truth, rows, columns, radius)
    head, held, true_head, true_held = one[0], one[5].shape[0], other[0], other[5].shape[0]
    return overlap(
        _planes(one, true_head, true_head + true_held, radius),
        _planes(other, head, head + held, radius),
    )


@_compiled
def _count_labels(prediction, stride, truth, true_stride, rows, columns, number, radius):
    counted = np.empty((number, 6), dtype=np.int64)
    for n in range(number):
        one = _pick(prediction, stride, rows, columns, n + 1)
        counted[n] = count(one, _pick(truth, true_stride, rows, columns, n + 1), rows, columns, radius)
    return counted


def count_labels(prediction: Any, truth: Any, number: int, radius: int) -> Any:
    """See ``plain.count_labels``; in one call, so that threads wait for each other once a picture."""
    return _count_labels(*_flat(prediction), *_flat(truth), *truth.shape, number, radius)
