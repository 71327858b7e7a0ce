"""Masks as streams of bits, 64 pixels to a word: the one form in which masks are counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from salmacli.metrics import kernels

Mask = NDArray[np.bool_]
Words = NDArray[np.uint64]


@dataclass(slots=True, eq=False)
class Bits:
    """A mask as a stream of bits.

    Attributes:
        words: (ceil(height * width / 64),) uint64. Pixel p of the stream is bit p % 64 of word p // 64; what lies
            behind the last pixel is 0.
        height: Rows of the picture.
        width: Columns of the picture.
        by_columns: Pixels run down the columns, as in COCO's run-length encoding, instead of along the rows.
    """

    words: Words
    height: int
    width: int
    by_columns: bool = False

    @classmethod
    def of_mask(cls, mask: Mask, by_columns: bool = False) -> Bits:
        """From an array.

        Args:
            mask: (H, W) booleans.
            by_columns: The order of the stream.

        Raises:
            ValueError: The array is not two-dimensional, or holds no booleans.
        """
        if mask.ndim != 2:
            raise ValueError(f"a mask must have the shape (H, W), not {mask.shape}")
        if mask.dtype != np.bool_:
            # 0/255 masks counted as numbers are how one set of masks got two scores elsewhere.
            raise ValueError(f"masks must be booleans, not {mask.dtype}")
        height, width = mask.shape
        return cls(_pack(mask.T if by_columns else mask), height, width, by_columns)

    @classmethod
    def of_label(cls, labels: NDArray[np.uint8], label: int) -> Bits:
        """One object of a picture of object numbers.

        Args:
            labels: (H, W) object numbers.
            label: The object's number.

        Raises:
            ValueError: The number is none of 8 bits.
        """
        if not 0 <= label <= 255:
            raise ValueError(f"object numbers go from 0 to 255, {label} is none")
        height, width = labels.shape
        return cls(kernels.pick(labels, label), height, width)

    @classmethod
    def of_runs(cls, runs: NDArray[np.int64], height: int, width: int) -> Bits:
        """From the run lengths of COCO: background first, down the columns.

        Args:
            runs: Lengths, not negative, that fill the picture exactly.
            height: Rows of the picture.
            width: Columns of the picture.

        Raises:
            ValueError: The runs do not fill the picture.
        """
        pixels = height * width
        size = f"its size {height}x{width} has {pixels}"
        # The kernels trust them: a sum alone may be right because it has overflown.
        if runs.max(initial=0) > pixels:
            raise ValueError(f"RLE has a run that covers {runs.max()} pixels but {size}")
        if runs.min(initial=0) < 0 or int(runs.sum()) != pixels:
            raise ValueError(f"RLE covers {runs.sum()} pixels but {size}")
        return cls(kernels.fill(runs, _length(height, width)), height, width, by_columns=True)

    @classmethod
    def empty(cls, height: int, width: int, by_columns: bool = False) -> Bits:
        """No pixel."""
        return cls(np.zeros(_length(height, width), dtype=np.uint64), height, width, by_columns)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    def area(self) -> int:
        """Number of pixels."""
        return int(kernels.popcount(self.words))

    def to_mask(self) -> Mask:
        """(H, W) booleans."""
        pixels = np.unpackbits(self.words.view(np.uint8), count=self.height * self.width, bitorder="little")
        if self.by_columns:
            return np.ascontiguousarray(pixels.reshape(self.width, self.height).T).view(np.bool_)
        return pixels.reshape(self.height, self.width).view(np.bool_)

    def turned(self, by_columns: bool) -> Bits:
        """The same mask with its stream in the given order."""
        return self if self.by_columns == by_columns else Bits.of_mask(self.to_mask(), by_columns)

    def __or__(self, other: Bits) -> Bits:
        return self._like(self.words | self._fitting(other))

    def __and__(self, other: Bits) -> Bits:
        return self._like(self.words & self._fitting(other))

    def without(self, other: Bits) -> Bits:
        """The pixels that the other does not have."""
        return self._like(self.words & ~self._fitting(other))

    def _like(self, words: Words) -> Bits:
        return Bits(words, self.height, self.width, self.by_columns)

    def _fitting(self, other: Bits) -> Words:
        if other.shape != self.shape:
            raise ValueError(f"masks must share one (H, W) shape, not {self.shape} and {other.shape}")
        return other.turned(self.by_columns).words


def _length(height: int, width: int) -> int:
    return (height * width + 63) // 64


def _pack(mask: Mask) -> Words:
    packed = np.packbits(mask.reshape(-1), bitorder="little")
    if packed.size % 8:
        packed = np.append(packed, np.zeros(-packed.size % 8, dtype=np.uint8))
    return packed.view(np.uint64)
