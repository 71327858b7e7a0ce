"""By which rules each benchmark is scored, in words that go into every result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

_EMPTY = "J: both masks empty 1, one empty 0; F: likewise by boundaries, so a full frame against nothing has 1"


@dataclass(frozen=True)
class Protocol:
    """The rules of one benchmark.

    Attributes:
        name: What the field calls it.
        overall: How the scores of expressions become the benchmark's.
        kinds: Kinds of expressions that count; None for all.
        mean_of_kinds: The overall score is the unweighted mean over kinds, not over expressions.
        accuracy: A and R of ReVOS are reported.
    """

    name: str
    overall: str
    kinds: tuple[str, ...] | None = None
    mean_of_kinds: bool = False
    accuracy: bool = False

    def record(self, missing: str) -> dict[str, str]:
        """The rules as ``results.json`` states them."""
        return {
            "name": self.name,
            "overall": self.overall,
            "frames": "all",
            "void": "none",
            "matching": "none: each expression has its own masks",
            "empty": _EMPTY,
            "rounding": "none",
            **(
                {"accuracy": "A and R by booleans; R only where the foreground masks are there"}
                if self.accuracy
                else {}
            ),
            "missing": missing,
        }

    @property
    def metrics(self) -> list[str]:
        """Columns that are meaned."""
        return ["J", "F", "A", "R"] if self.accuracy else ["J", "F"]

    def counted(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The expressions that count."""
        return rows if self.kinds is None else rows[rows["kind"].isin(self.kinds)]

    def scores(self, rows: pd.DataFrame) -> dict[str, float]:
        """The benchmark's scores from one row per expression."""
        columns = [metric for metric in self.metrics if rows[metric].notna().all()]
        if self.mean_of_kinds:
            return _with_jf(rows.groupby("kind")[columns].mean().mean())
        return _with_jf(rows[columns].mean())

    def group(self, rows: pd.DataFrame) -> dict[str, Any]:
        """Flat means over the expressions of one group."""
        columns = [metric for metric in self.metrics if rows[metric].notna().all()]
        return {**_with_jf(rows[columns].mean()), "expressions": len(rows)}


def _with_jf(means: pd.Series[float]) -> dict[str, float]:
    scores = {str(metric): float(value) for metric, value in means.items()}
    return {"J": scores.pop("J"), "F": scores.pop("F"), "JF": float(means["J"] + means["F"]) / 2, **scores}


_FLAT = "mean over frames, then over expressions; J&F = (J + F) / 2"

PROTOCOLS: Mapping[str, Protocol] = {
    "mevis": Protocol("MeViS", _FLAT),
    "davis": Protocol("Ref-DAVIS17, expression", _FLAT),
    "refytvos": Protocol("Ref-YouTube-VOS", _FLAT),
    "revos": Protocol(
        "ReVOS, booleans",
        "mean over frames, then over expressions of one kind; overall = unweighted mean of referring and"
        " reasoning; expressions without target are left out",
        kinds=("referring", "reasoning"),
        mean_of_kinds=True,
        accuracy=True,
    ),
}
