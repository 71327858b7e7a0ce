"""Objects by the rules of DAVIS: which prediction is scored as which object, and what the scores of objects come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from salmacli.metrics.bits import Bits
from salmacli.metrics.contour import contour_accuracy
from salmacli.metrics.counts import NAMES, Counts, Traced, count, trace
from salmacli.metrics.region import region_similarity
from salmacli.metrics.statistics import summarise

MEASURES = ("JF", "J", "J_recall", "J_decay", "F", "F_recall", "F_decay")
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class ObjectScores:
    """What one object scored, frame by frame.

    Attributes:
        object: Its number in the truth.
        proposal: The number of the prediction that was scored as this object; None where the predictions have
            fewer objects than the truth.
        counts: (frames, 6).
        J: (frames,) region similarity.
        F: (frames,) contour accuracy.
    """

    object: int
    proposal: int | None
    counts: Counts
    J: Scores
    F: Scores

    def row(self) -> dict[str, Any]:
        """Number of frames, and statistics over them."""
        J, F = summarise(self.J), summarise(self.F)
        values = ((J.mean + F.mean) / 2, *J, *F)
        return {"frames": len(self.J), **dict(zip(MEASURES, values, strict=True))}


def pair(proposals: Sequence[Bits], objects: Sequence[Traced]) -> Counts:
    """Count every proposal against every object of one frame, each mask traced once.

    Args:
        proposals: P masks.
        objects: O masks, at least one; all masks are of one size and one order.

    Returns:
        (1 + P, O, 6) int64; row 0 is a proposal without a pixel, the others are the proposals in order.
    """
    like = objects[0]
    nothing = Bits.empty(like.height, like.width, like.by_columns)
    return np.array([[count(one, truth) for truth in objects] for one in map(trace, (nothing, *proposals))])


def same(counts: Sequence[Counts], failed: NDArray[np.bool_]) -> list[ObjectScores]:
    """Scores where identities are given: prediction n is object n.

    Args:
        counts: Per frame (O, 6).
        failed: (frames,) where every object scores 0.
    """
    table = np.stack(counts, axis=1)
    J, F = _scores(table, failed)
    return [ObjectScores(n + 1, n + 1, table[n], J[n], F[n]) for n in range(len(table))]


def matched(pairs: Sequence[Counts], proposals: int, failed: NDArray[np.bool_]) -> list[ObjectScores]:
    """Scores where identities are free: the assignment of proposals to objects that scores highest.

    What is assigned is the mean of J and F over the frames, each object to one proposal. Where there are
    fewer proposals than objects, ones without a pixel make up for it.

    Args:
        pairs: Per frame :func:`pair`, of O objects and at most P proposals.
        proposals: P.
        failed: (R, frames) where a proposal scores 0 against every object; R at most the larger of P and O.

    Returns:
        One entry per object, in the order of the proposals as the official tool lists them.

    Source: davis2017-evaluation, task unsupervised.
    """
    # Imported here since it takes longer than all else that this module needs.
    from scipy.optimize import linear_sum_assignment

    rows = max(proposals, pairs[0].shape[1])
    order = np.arange(1, rows + 1)
    # What a frame lacks is a proposal without a pixel there: row 0.
    table = np.stack([of_frame[np.where(order < len(of_frame), order, 0)] for of_frame in pairs], axis=2)
    zero = np.zeros((rows, 1, len(pairs)), dtype=np.bool_)
    zero[: len(failed), 0] = failed
    J, F = _scores(table, zero)
    chosen = zip(*linear_sum_assignment(-((J.mean(axis=2) + F.mean(axis=2)) / 2)), strict=True)
    return [
        ObjectScores(int(o) + 1, int(p) + 1 if p < proposals else None, table[p, o], J[p, o], F[p, o])
        for p, o in chosen
    ]


def frame_columns(
    score: ObjectScores | None, kept: NDArray[np.bool_], unscored: Counts, pixels: int
) -> dict[str, NDArray[Any]]:
    """One object's columns of ``per_frame``: counts, J and F.

    Args:
        score: What it scored; None where no frame was kept.
        kept: (frames,) which frames were scored.
        unscored: (frames, 6) the counts that stand where a frame was not.
        pixels: Of a frame.
    """
    counts, (J, F) = unscored.copy(), np.full((2, len(kept)), np.nan)
    if score is not None:
        counts[kept], J[kept], F[kept] = score.counts, score.J, score.F
    named = {name: counts[:, column] for column, name in enumerate(NAMES)}
    return {**named, "pixels": np.full(len(kept), pixels), "J": J, "F": F}


def object_tables(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Mapping[str, NDArray[Any]]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables ``per_object`` and ``per_frame`` from one row, and from the columns, of each object."""
    frames = pd.DataFrame({key: np.concatenate([part[key] for part in columns]) for key in columns[0]})
    # Objects that no proposal was left for have none.
    numbers = {"proposal": "Int64"}
    return pd.DataFrame(rows).astype(numbers), frames.infer_objects().astype(numbers)


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over objects, in the order of the rows."""
    found = {measure: float(np.mean([row[measure] for row in rows])) for measure in MEASURES}
    # Of the means and not of the rows: the last bit may differ.
    return {**found, "JF": (found["J"] + found["F"]) / 2}


def _scores(table: Counts, zero: NDArray[np.bool_]) -> tuple[Scores, Scores]:
    J, F = region_similarity(table), contour_accuracy(table)
    return np.where(zero, 0.0, J), np.where(zero, 0.0, F)
