"""A and R of ReVOS by boolean rules.

The official script adds 8-bit masks that are 0/255 on one path and 0/1 on the other, so that the same masks
get different A and R; here masks are booleans and overlap is united.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from salmacli.metrics.counts import INTERSECTION, UNION, Counts, Mask


def pixel_accuracy(counts: Counts, pixels: int) -> NDArray[np.float64]:
    """A: share of the frame's pixels on which prediction and truth agree.

    Args:
        counts: (..., 6) from :mod:`salmacli.metrics.counts`.
        pixels: Height times width of the frame.

    Returns:
        (...) float64 in 0..1.
    """
    disagree = counts[..., UNION] - counts[..., INTERSECTION]
    return np.asarray(1.0 - disagree / pixels, dtype=np.float64)


def robustness(prediction: Mask, truth: Mask, foreground: Mask) -> float:
    """R of one frame: 1 minus prediction outside the target, in units of all annotated objects; at least 0.

    Args:
        prediction: (H, W) booleans.
        truth: (H, W) booleans.
        foreground: (H, W) booleans, everything annotated in the frame.

    Source: VISA (Yan et al., ECCV 2024).
    """
    outside = np.count_nonzero(prediction & ~truth)
    return float(max(1.0 - outside / (np.count_nonzero(foreground) + 1e-6), 0.0))
