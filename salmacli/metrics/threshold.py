"""Every threshold from one pass over the scores, and a choice that is not judged on its own data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from salmacli.metrics.bits import Mask

TRUE_POSITIVE, FALSE_POSITIVE, TRUTH = range(3)


def even_thresholds(number: int) -> NDArray[np.float64]:
    """``number`` thresholds evenly inside 0..1: 99 gives 0.01, 0.02, ... 0.99.

    Raises:
        ValueError: The number is not positive.
    """
    if number < 1:
        raise ValueError(f"at least one threshold is needed, not {number}")
    return np.arange(1, number + 1) / (number + 1)


def sweep(scores: NDArray[np.floating], truth: Mask, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts of the mask ``scores >= threshold`` for every threshold, exact, in one pass.

    Each pixel's bin is the number of thresholds <= its score; a histogram on the foreground and one on the
    background, summed from the right, are the counts. Scores and thresholds are compared as the real numbers
    they stand for (a float32 0.7 lies below a float64 0.7).

    Args:
        scores: Scores of any shape.
        truth: Booleans of the same shape.
        thresholds: (K,) ascending.

    Returns:
        (K, 3) int64: true positives, false positives, foreground of the truth.

    Raises:
        ValueError: Shapes differ, truth is not boolean, thresholds do not ascend, or something is NaN.
    """
    if scores.shape != truth.shape or truth.dtype != np.bool_:
        raise ValueError(f"truth must be booleans of shape {scores.shape}, not {truth.dtype} of {truth.shape}")
    if thresholds.ndim != 1 or thresholds.size == 0 or not (np.diff(thresholds) > 0).all():
        raise ValueError("thresholds must be a list of ascending numbers")
    if np.isnan(scores).any() or np.isnan(thresholds).any():
        raise ValueError("scores and thresholds must not be NaN")
    bins = np.searchsorted(thresholds, scores.ravel(), side="right")
    inside = truth.ravel()
    size = thresholds.size + 1
    foreground = np.bincount(bins[inside], minlength=size)
    background = np.bincount(bins[~inside], minlength=size)
    counts = np.empty((thresholds.size, 3), dtype=np.int64)
    # A pixel in bin b passes the first b thresholds, so threshold k keeps the bins above k.
    counts[:, TRUE_POSITIVE] = foreground[::-1].cumsum()[::-1][1:]
    counts[:, FALSE_POSITIVE] = background[::-1].cumsum()[::-1][1:]
    counts[:, TRUTH] = np.count_nonzero(inside)
    return counts


def intersection_over_union(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU (J) per threshold; both empty gives 1, one empty gives 0.

    Args:
        counts: (..., K, 3) from :func:`sweep`.

    Returns:
        (..., K) float64.
    """
    union = counts[..., TRUTH] + counts[..., FALSE_POSITIVE]
    return np.where(union == 0, 1.0, counts[..., TRUE_POSITIVE] / np.maximum(union, 1))


def dice(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Dice per threshold; both empty gives 1, one empty gives 0.

    Args:
        counts: (..., K, 3) from :func:`sweep`.

    Returns:
        (..., K) float64.
    """
    both = counts[..., TRUTH] + counts[..., FALSE_POSITIVE] + counts[..., TRUE_POSITIVE]
    return np.where(both == 0, 1.0, 2 * counts[..., TRUE_POSITIVE] / np.maximum(both, 1))


@dataclass(frozen=True)
class Choice:
    """A chosen threshold.

    Attributes:
        threshold: Best on all rows.
        score: Its score on the same rows it was chosen on; optimistic.
        held_out: Mean score of every row at the threshold chosen without its video; None with a single video.
        folds: The thresholds chosen per fold.
    """

    threshold: float
    score: float
    held_out: float | None
    folds: tuple[float, ...]


def choose(
    scores: NDArray[np.float64], thresholds: NDArray[np.float64], videos: Sequence[str], folds: int = 5
) -> Choice:
    """Choose a threshold, and by cross-validation over videos say what such a choice is worth on unseen ones.

    Args:
        scores: (rows, K), e.g. one row per expression, meaned over its frames.
        thresholds: (K,) ascending.
        videos: (rows,) the video of each row; a video is never on both sides of a split.
        folds: Number of folds, lowered to the number of videos.

    Raises:
        ValueError: Shapes do not fit, or there is no row.
    """
    if scores.shape != (len(videos), thresholds.size) or scores.shape[0] == 0:
        raise ValueError(f"scores {scores.shape} do not fit {len(videos)} rows and {thresholds.size} thresholds")
    best = _best(scores, thresholds)
    names, video = np.unique(np.asarray(videos), return_inverse=True)
    folds = min(folds, names.size)
    if folds < 2:
        return Choice(float(thresholds[best]), float(scores[:, best].mean()), None, ())
    fold = video % folds
    chosen = [_best(scores[fold != f], thresholds) for f in range(folds)]
    held_out = scores[np.arange(len(videos)), np.asarray(chosen)[fold]]
    return Choice(
        threshold=float(thresholds[best]),
        score=float(scores[:, best].mean()),
        held_out=float(held_out.mean()),
        folds=tuple(float(thresholds[c]) for c in chosen),
    )


def _best(scores: NDArray[np.float64], thresholds: NDArray[np.float64]) -> int:
    """Index of the highest mean; among equals the one nearest to 0.5."""
    mean = scores.mean(axis=0)
    equals = np.flatnonzero(mean == mean.max())
    return int(equals[np.abs(thresholds[equals] - 0.5).argmin()])
