"""How the scores of expressions become those of a benchmark: one function per way of averaging.

Each takes rows of ``per_expression.csv`` and gives the scores that can be made of them: what a set of rows has
nothing for is left out, never filled in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from salmacli.metrics.pictures import cumulative_iou, precision_at

Scores = dict[str, float]
Average = Callable[[pd.DataFrame], Scores]

NO_TARGET = "no-target"


def region_and_contour(rows: pd.DataFrame) -> Scores:
    """J, F, their mean, and A and R where the rows have them."""
    return _of_means({column: _mean(rows[column]) for column in ("J", "F", "A", "R") if _known(rows, column)})


def rounded(rows: pd.DataFrame) -> Scores:
    """The same, but of percentages with two decimals, as the official script of ReVOS prints each expression."""
    columns = [column for column in ("J", "F", "A", "R", "A_rle", "R_rle") if _known(rows, column)]
    percent = {column: np.round(100 * rows[column].to_numpy(), 2) for column in columns}
    return _of_means({column: float(np.mean(values)) / 100 for column, values in percent.items()})


def with_no_target(rows: pd.DataFrame) -> Scores:
    """MeViS v2: J, F of expressions with a target, the two accuracies, and the mean of the three."""
    targeted = rows[rows["kind"] != NO_TARGET]
    scores = (region_and_contour(targeted) if len(targeted) else {}) | _existence(rows)
    if scores.keys() >= {"JF", "N_acc", "T_acc"}:
        scores["final"] = (scores["JF"] + scores["N_acc"] + scores["T_acc"]) / 3
    return scores


def of_pictures(rows: pd.DataFrame) -> Scores:
    """RefCOCO: cIoU, gIoU (the mean IoU) and P@."""
    return _overlap(rows) | precision_at(rows["J"].to_numpy())


def of_pictures_with_no_target(rows: pd.DataFrame) -> Scores:
    """gRefCOCO: the same with the two accuracies; P@ of expressions with a target."""
    targeted = rows[rows["kind"] != NO_TARGET]
    return _overlap(rows) | _existence(rows) | (precision_at(targeted["J"].to_numpy()) if len(targeted) else {})


def _overlap(rows: pd.DataFrame) -> Scores:
    whole = cumulative_iou(rows["intersection"].to_numpy(), rows["union"].to_numpy())
    return {"cIoU": whole, "gIoU": _mean(rows["J"])}


def _existence(rows: pd.DataFrame) -> Scores:
    """N_acc: nothing is predicted where nothing is meant; T_acc: something where something is.

    A mask that is missing and scores 0 answers neither.
    """
    without = rows["kind"] == NO_TARGET
    scores = {}
    if without.any():
        scores["N_acc"] = float((rows["empty"] == rows["frames"])[without].mean())
    if not without.all():
        scores["T_acc"] = float((rows["predicted"] > 0)[~without].mean())
    return scores


def _of_means(means: Scores) -> Scores:
    """J, F and J&F in front, the rest behind."""
    J, F = means.pop("J"), means.pop("F")
    return {"J": J, "F": F, "JF": (J + F) / 2, **means}


def _known(rows: pd.DataFrame, column: str) -> bool:
    return column in rows and bool(rows[column].notna().all())


def _mean(values: pd.Series[float]) -> float:
    # NumPy's own sum, as the official scripts have it: pandas adds in another order.
    return float(np.mean(values.to_numpy()))
