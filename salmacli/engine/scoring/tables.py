"""What was counted, as tables: one row per predicted mask, and one per expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from salmacli.config.files import legible
from salmacli.data.records import Expression
from salmacli.engine.scoring.counting import CountedVideo
from salmacli.metrics.contour import contour_accuracy
from salmacli.metrics.counts import INTERSECTION, NAMES
from salmacli.metrics.region import region_similarity
from salmacli.metrics.revos import pixel_accuracy, robustness

SUMS = ("intersection", "union", "predicted")


def frame_table(videos: Sequence[CountedVideo], missing: str, accuracy: str | None = None) -> pd.DataFrame:
    """One row per expression and frame: counts, scores, and the problem if there is one.

    Args:
        videos: What was counted.
        missing: Masks with a problem score 0 ("zero"), or nothing.
        accuracy: See ``count_video``; adds A and, where the foreground is known, R.
    """
    names = [name for name in videos[0].columns if all(name in video.columns for video in videos)]
    table = {
        "video": [video.video.name for video in videos for _ in range(video.kinds.size)],
        "expression": [one.id for video in videos for one in video.video.expressions for _ in video.video.frames],
        "frame": [frame for video in videos for _ in video.video.expressions for frame in video.video.frames],
        **{name: np.concatenate([video.columns[name].ravel() for video in videos]) for name in names},
    }
    problem = np.concatenate([video.kinds.ravel() for video in videos])
    failed = np.array([kind is not None for kind in problem], dtype=np.bool_)
    for name, scores in _scores(table, accuracy).items():
        table[name] = np.where(failed, 0.0 if missing == "zero" else np.nan, scores)
    return pd.DataFrame({**table, "problem": problem})


def expression_table(
    videos: Sequence[CountedVideo], frames: pd.DataFrame, missing: str, whole: bool = False
) -> pd.DataFrame:
    """One row per expression: what was asked and said, means of the frames' scores, and sums of their pixels.

    Args:
        videos: What was counted.
        frames: Their :func:`frame_table`.
        missing: Masks with a problem count as frames ("zero"), or do not.
        whole: An expression with a problem that counts scores 0 as a whole.
    """
    metrics = [name for name in ("J", "F", "A", "R", "A_rle", "R_rle") if name in frames]
    columns = {name: frames[name].to_numpy() for name in (*metrics, *SUMS)}
    failed = frames["problem"].notna().to_numpy()
    rows, end = [], 0
    for video in videos:
        for expression, said in zip(video.video.expressions, video.said, strict=True):
            start, end = end, end + len(video.video.frames)
            wrong = failed[start:end]
            kept = start + np.flatnonzero(~wrong | (missing == "zero"))
            means = {name: float(np.mean(columns[name][kept])) if kept.size else np.nan for name in metrics}
            if whole and missing == "zero" and wrong.any():
                means = dict.fromkeys(means, 0.0)
            rows.append(
                {
                    **_asked(video.video.name, expression),
                    "frames": kept.size,
                    "missing": int(wrong.sum()),
                    **means,
                    **{name: int(columns[name][kept].sum()) for name in SUMS},
                    "empty": int((columns["predicted"][start:end][~wrong] == 0).sum()),
                    "fallback": None if said.fallback is None else legible(said.fallback),
                    "empty_frames": said.empty,
                    "filled_frames": said.filled,
                    "answer": None if said.answer is None else legible(said.answer),
                }
            )
    table = pd.DataFrame(rows)
    # Whole numbers that may be unknown.
    table = table.astype({"empty_frames": "Int64", "filled_frames": "Int64"})
    table.insert(table.columns.get_loc("F") + 1, "JF", (table["J"] + table["F"]) / 2)
    return table


def _asked(video: str, expression: Expression) -> dict[str, Any]:
    distractor = expression.tags.get("distractor")
    return {
        "video": video,
        "expression": expression.id,
        "text": expression.text,
        "kind": expression.kind,
        "category": expression.tags.get("category"),
        "distractor": None if distractor is None else "yes" if distractor else "no",
    }


def _scores(table: dict[str, Any], accuracy: str | None) -> dict[str, NDArray[np.float64]]:
    counts = np.stack([table[name] for name in NAMES], axis=-1)
    scores = {"J": region_similarity(counts), "F": contour_accuracy(counts)}
    if accuracy == "boolean":
        scores["A"] = pixel_accuracy(counts, table["pixels"])
        if "foreground" in table:
            outside = table["predicted"] - counts[..., INTERSECTION]
            scores["R"] = robustness(outside, table["foreground"])
    elif accuracy == "8 bits":
        for path in ("", "_rle"):
            scores[f"A{path}"] = table[f"agree{path}"] / table["pixels"]
            if "foreground" in table:
                scores[f"R{path}"] = robustness(table[f"outside{path}"], table["foreground"])
    return scores
