"""A and R of ReVOS: by booleans, and in the 8 bits of the official script.

That script adds the masks of an expression's objects in 8 bits, multiplies them with predictions that are 0/255 on
one path and 0/1 on the other, and lets everything wrap around; so the same masks get other A and R on each path.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from salmacli.metrics.bits import Mask
from salmacli.metrics.counts import INTERSECTION, UNION, Counts


def pixel_accuracy(counts: Counts, pixels: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """A: share of the frame's pixels on which prediction and truth agree.

    Args:
        counts: (..., 6) from :mod:`salmacli.metrics.counts`.
        pixels: (...) height times width of the frame.

    Returns:
        (...) float64 in 0..1.
    """
    agreeing = pixels - (counts[..., UNION] - counts[..., INTERSECTION])
    return np.asarray(agreeing / np.asarray(pixels), dtype=np.float64)


def robustness(outside: NDArray[np.int64], foreground: NDArray[np.int64]) -> NDArray[np.float64]:
    """R: 1 minus prediction outside the target, in units of all annotated objects; at least 0.

    Args:
        outside: (...) predicted pixels that are not of the target.
        foreground: (...) pixels of everything annotated in the frame.

    Returns:
        (...) float64 in 0..1.

    Source: VISA (Yan et al., ECCV 2024).
    """
    return np.asarray(np.maximum(1 - outside / (foreground + 1e-6), 0.0), dtype=np.float64)


def added_up(masks: Iterable[Mask], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """How many masks cover each pixel, modulo 256.

    Args:
        masks: Any number of (H, W) booleans.
        shape: (H, W).
    """
    total = np.zeros(shape, dtype=np.uint8)
    for mask in masks:
        total += mask
    return total


def eight_bit_counts(prediction: Mask, truth: NDArray[np.uint8], value: int) -> tuple[int, int]:
    """What the official script counts for A and R in one frame.

    Args:
        prediction: (H, W) booleans.
        truth: (H, W) from :func:`added_up`.
        value: What the prediction's foreground holds: 255 read from PNGs, 1 decoded from RLEs.

    Returns:
        Pixels that hold the same number (over all pixels, that is A), and the sum of (1 - truth) times prediction,
        each product modulo 256 (what :func:`robustness` takes for the pixels outside).
    """
    predicted = prediction.astype(np.uint8) * np.uint8(value)
    products = (np.uint8(1) - truth) * predicted
    return int(np.count_nonzero(truth == predicted)), int(products.sum(dtype=np.int64))
