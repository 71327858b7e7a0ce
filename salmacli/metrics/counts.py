"""Six integers per object and frame from which J and F follow; all counting is here and exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, sqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from salmacli.metrics import kernels
from salmacli.metrics.bits import Bits, Mask

Counts = NDArray[np.int64]

# Positions on the last axis of every counts array.
INTERSECTION, UNION, TRUTH_BOUNDARY, PREDICTION_BOUNDARY, TRUTH_MATCHED, PREDICTION_MATCHED = range(6)
NAMES = ("intersection", "union", "truth_boundary", "prediction_boundary", "truth_matched", "prediction_matched")

TOLERANCE = 0.008  # of the picture's diagonal


@dataclass(slots=True, eq=False)
class Traced:
    """A mask made ready to be counted against others: where it is, its boundary, and what is near its boundary.

    Attributes:
        height: Rows of the picture.
        width: Columns of the picture.
        by_columns: As of :class:`Bits`.
        radius: The boundary tolerance in pixels that it was traced with.
        area: Pixels of the mask.
        boundary: Pixels of the boundary: those that differ from their right, lower or lower right neighbour. The
            last row looks only right, the last column only down, the corner nowhere.
        planes: As the kernels give it.
    """

    height: int
    width: int
    by_columns: bool
    radius: int
    area: int
    boundary: int
    planes: kernels.Planes


AnyMask: TypeAlias = "Mask | Bits | Traced"


def boundary_radius(height: int, width: int) -> int:
    """Distance in pixels within which two boundaries count as the same: 8 at 480x854.

    Source: DAVIS (Perazzi et al., CVPR 2016), ``bound_th = 0.008``.
    """
    return ceil(TOLERANCE * sqrt(height * height + width * width))


def trace(mask: Mask | Bits, radius: int | None = None) -> Traced:
    """Make a mask ready to be counted.

    Args:
        mask: (H, W) booleans, or bits.
        radius: Boundary tolerance in pixels (Euclidean, inclusive); by default :func:`boundary_radius`.

    Raises:
        ValueError: The array is no mask, or the radius is negative.
    """
    bits = mask if isinstance(mask, Bits) else Bits.of_mask(mask)
    radius = _radius(bits.shape, radius)
    planes = kernels.trace(bits.words, *_grid(bits), radius)
    return Traced(bits.height, bits.width, bits.by_columns, radius, planes[4], planes[5], planes)


def count(prediction: AnyMask, truth: AnyMask, radius: int | None = None) -> Counts:
    """Count what two masks of one frame share.

    Args:
        prediction: (H, W) booleans, bits, or a mask traced before.
        truth: Likewise.
        radius: Boundary tolerance in pixels; by default that of a traced mask, else :func:`boundary_radius`.

    Returns:
        (6,) int64: intersection, union, boundary pixels of truth and of prediction, and how many of either
        lie within ``radius`` (Euclidean, inclusive) of the other's boundary.

    Raises:
        ValueError: The masks are not of one (H, W) shape, not booleans, or traced with other radii.
    """
    if _shape(prediction) != _shape(truth):
        raise ValueError(f"masks must share one (H, W) shape, not {_shape(prediction)} and {_shape(truth)}")
    if isinstance(prediction, Traced) or isinstance(truth, Traced):
        like = prediction if isinstance(prediction, Traced) else truth
        assert isinstance(like, Traced)
        a, b = _traced(prediction, like.radius, like.by_columns), _traced(truth, like.radius, like.by_columns)
        if a.radius != b.radius or a.by_columns != b.by_columns or radius not in (None, a.radius):
            raise ValueError("traced masks must share radius and order to be counted against each other")
        return np.array(kernels.overlap(a.planes, b.planes), dtype=np.int64)
    by_columns = any(isinstance(mask, Bits) and mask.by_columns for mask in (prediction, truth))
    one, other = _bits(prediction, by_columns), _bits(truth, by_columns)
    counted = kernels.count(one.words, other.words, *_grid(one), _radius(one.shape, radius))
    return np.array(counted, dtype=np.int64)


def count_labels(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8], number: int, radius: int | None = None
) -> Counts:
    """:func:`count` of the objects of two pictures of object numbers.

    Args:
        prediction: (H, W) object numbers.
        truth: Likewise.
        number: The objects 1 to this one are counted.
        radius: As of :func:`count`.

    Returns:
        (number, 6) int64.

    Raises:
        ValueError: The pictures are not of one (H, W) shape, or not of 8 bits, the number is none, or the radius is
            negative.
    """
    if prediction.ndim != 2 or prediction.shape != truth.shape:
        raise ValueError(f"pictures must share one (H, W) shape, not {prediction.shape} and {truth.shape}")
    if prediction.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ValueError(f"object numbers must be of 8 bits, not {prediction.dtype} and {truth.dtype}")
    if not 0 <= number <= 255:
        raise ValueError(f"object numbers go from 1 to 255, not to {number}")
    radius = _radius(truth.shape, radius)
    return np.asarray(kernels.count_labels(prediction, truth, number, radius), dtype=np.int64)


def count_frames(pairs: Iterable[tuple[AnyMask, AnyMask]]) -> Counts:
    """:func:`count` for every (prediction, truth) of a video.

    Returns:
        (frames, 6) int64.
    """
    rows = [count(prediction, truth) for prediction, truth in pairs]
    return np.stack(rows) if rows else np.zeros((0, 6), dtype=np.int64)


def _shape(mask: AnyMask) -> tuple[int, ...]:
    return (mask.height, mask.width) if isinstance(mask, (Bits, Traced)) else mask.shape


def _bits(mask: Mask | Bits, by_columns: bool) -> Bits:
    return mask.turned(by_columns) if isinstance(mask, Bits) else Bits.of_mask(mask, by_columns)


def _traced(mask: AnyMask, radius: int, by_columns: bool) -> Traced:
    return mask if isinstance(mask, Traced) else trace(_bits(mask, by_columns), radius)


def _grid(bits: Bits) -> tuple[int, int]:
    """Rows and columns of the stream.

    Boundary and distance are the same rules along rows and columns, so a stream by columns is counted as it is.
    """
    return (bits.width, bits.height) if bits.by_columns else (bits.height, bits.width)


def _radius(shape: tuple[int, int], radius: int | None) -> int:
    radius = boundary_radius(*shape) if radius is None else radius
    if radius < 0:
        raise ValueError(f"the boundary radius must not be negative, it is {radius}")
    return radius
