"""From predictions on disk to scores: one row per expression, then the benchmark's own means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import salmacli
from salmacli.config.files import write_atomic, write_json
from salmacli.data.rle import decode
from salmacli.engine.predictions import PredictedVideo, Predictions
from salmacli.engine.progress import Progress
from salmacli.engine.protocols import PROTOCOLS, Protocol
from salmacli.engine.threads import in_threads
from salmacli.errors import DataError
from salmacli.metrics.contour import contour_accuracy
from salmacli.metrics.counts import Mask, count
from salmacli.metrics.region import region_similarity
from salmacli.metrics.revos import pixel_accuracy, robustness

if TYPE_CHECKING:
    from salmacli.data.benchmarks import Benchmark
    from salmacli.data.records import Expression, Video

SCHEMA = 1
Missing = Literal["error", "zero", "drop"]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        results: The content of ``results.json``.
        rows: One row per expression, the content of ``per_expression.csv``.
    """

    results: dict[str, Any]
    rows: pd.DataFrame

    def write(self, folder: Path) -> Path:
        """Write both files; the path of ``results.json``, which appears last, is returned."""
        write_atomic(folder / "per_expression.csv", self.rows.to_csv(index=False, lineterminator="\n"))
        write_json(folder / "results.json", self.results)
        return folder / "results.json"


@dataclass
class _Scored:
    """One video: a row per expression, what is missing and what is too much, in expression-frames."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: int = 0


def evaluate(
    benchmark: Benchmark,
    predictions: Path,
    missing: Missing = "error",
    record: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a folder of predictions.

    Args:
        benchmark: Gives the videos, the expressions and the truth.
        predictions: Folder the predictor wrote.
        missing: A predicted frame that is missing or does not fit is an error, counts as a score of 0, or is
            left out of the means.
        record: ``run``, ``mode``, ``checkpoint`` and ``config`` for the results; ``prediction.json`` fills
            what is left out.
        progress: Told of every video.

    Raises:
        DataError: No protocol or no public truth for this benchmark, predictions that are missing (with
            ``missing="error"``), broken, or of another benchmark.
    """
    protocol = _protocol(benchmark)
    found = Predictions(predictions)
    check_same(benchmark, found)
    load_truth(benchmark)
    scored = in_threads(
        lambda video: _score_video(benchmark, found, video, missing),
        benchmark.videos,
        f"scoring {benchmark.name}",
        progress,
    )
    absent = [problem for video in scored for problem in video.missing]
    if absent and missing == "error":
        raise DataError(
            f"{predictions}: {len(absent)} of {_frames(benchmark)} predicted masks are missing or do not fit,"
            f" the first: {absent[0]}",
            "predict again with `salma eval`, or score with --missing zero or --missing drop",
        )
    rows = pd.DataFrame([row for video in scored for row in video.rows])
    if not protocol.accuracy:
        rows = rows.drop(columns=["A", "R"], errors="ignore")
    counted = protocol.counted(rows) if len(rows) else rows
    if not len(counted):
        raise DataError(f"{predictions}: no expression of {benchmark.name} {benchmark.split} is left to score")
    unknown = found.videos() - {video.name for video in benchmark.videos}
    extra = sum(video.extra for video in scored) + sum(_extra_masks(found, name) for name in sorted(unknown))
    results = {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "synthetic": benchmark.synthetic,
        **_origin(found, record or {}),
        "protocol": protocol.record(missing),
        "scores": protocol.scores(counted),
        "groups": _groups(protocol, counted),
        "counts": {
            "videos": int(rows["video"].nunique()),
            "expressions": len(counted),
            "left_out": len(rows) - len(counted),
            "frames": int(counted["frames"].sum()),
            "missing": len(absent),
            "extra": extra,
            "fallbacks": {str(k): int(v) for k, v in counted["fallback"].value_counts().items()},
        },
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "salma": salmacli.__version__,
    }
    return Evaluation(results, rows)


def truth_of(benchmark: Benchmark, video: Video, expression: Expression) -> list[dict[str, Any]]:
    """The truth of one expression, one RLE per frame.

    Raises:
        DataError: The benchmark has no public truth.
    """
    truth = benchmark.truth(video, expression)
    if truth is None:
        raise DataError(
            f"{benchmark.name} {benchmark.split} has no public truth, so it cannot be scored here",
            "write a submission for its server from the predictions, or evaluate a split that has masks",
        )
    return truth


def load_truth(benchmark: Benchmark) -> None:
    """Ask for one truth, so that files read on the first question are read once and not by every thread.

    Raises:
        DataError: The benchmark has no public truth, or its masks are broken.
    """
    for video in benchmark.videos:
        if video.expressions:
            truth_of(benchmark, video, video.expressions[0])
            _foreground(benchmark, video)
            return


def check_asked(benchmark: Benchmark, video: PredictedVideo, expression: Expression) -> None:
    """Refuse predictions that answer another sentence than the benchmark's.

    Raises:
        DataError: The sentences differ.
    """
    predicted = video.expressions.get(expression.id)
    if predicted is not None and predicted.text is not None and predicted.text != expression.text:
        raise DataError(
            f"{video.path}: expression {expression.id!r} answers {predicted.text!r}, but {benchmark.name} "
            f"{benchmark.split} in {benchmark.root} asks {expression.text!r}",
            "name the data root the predictions were made from, or predict again",
        )


def check_same(benchmark: Benchmark, found: Predictions) -> None:
    """Refuse predictions that say they are of another benchmark or split.

    Raises:
        DataError: They are.
    """
    for key, asked in (("benchmark", benchmark.name), ("split", benchmark.split)):
        said = found.record.get(key, asked)
        if said != asked:
            raise DataError(f"{found.folder} holds predictions of {key} {said!r}, not {asked!r}", "name the other one")


def _protocol(benchmark: Benchmark) -> Protocol:
    if benchmark.name not in PROTOCOLS:
        raise DataError(f"there is no protocol to score {benchmark.name!r}", f"use one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[benchmark.name]


def _origin(found: Predictions, record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record.get(key, found.record.get(key)) for key in ("mode", "run", "checkpoint", "config")}


def _frames(benchmark: Benchmark) -> int:
    return sum(len(video.frames) * len(video.expressions) for video in benchmark.videos)


def _score_video(benchmark: Benchmark, found: Predictions, video: Video, missing: Missing) -> _Scored:
    scored = _Scored()
    predicted = found.read(video.name)
    foreground = _foreground(benchmark, video)
    for expression in video.expressions:
        if predicted is not None:
            check_asked(benchmark, predicted, expression)
        truth = truth_of(benchmark, video, expression)
        values: list[NDArray[np.float64]] = []
        for position, frame in enumerate(video.frames):
            target = decode(truth[position])
            try:
                mask = _mask(predicted, expression, frame, target.shape, found, video)
            except _AbsentError as absent:
                scored.missing.append(str(absent))
                if missing == "zero":
                    values.append(np.zeros(4))
                continue
            values.append(_scores(mask, target, None if foreground is None else decode(foreground[position])))
        if values:
            scored.rows.append(_row(video, expression, predicted, np.mean(values, axis=0), len(values)))
    if predicted is not None:
        scored.extra = _extra_of(predicted, video)
    return scored


class _AbsentError(Exception):
    """A predicted mask that is missing or does not fit; the message says which and why."""


def _mask(
    predicted: PredictedVideo | None,
    expression: Expression,
    frame: str,
    shape: tuple[int, ...],
    found: Predictions,
    video: Video,
) -> Mask:
    if predicted is None:
        raise _AbsentError(f"{video.name}.json is not in {found.folder}")
    if predicted.size != shape:
        raise _AbsentError(f"{predicted.path.name} is of size {predicted.size} where the truth is {shape}")
    try:
        return predicted.mask(expression.id, frame)
    except DataError as error:
        raise _AbsentError(str(error)) from None


def _scores(mask: Mask, target: Mask, foreground: Mask | None) -> NDArray[np.float64]:
    """J, F, A and R of one frame; R is NaN where the benchmark knows no foreground."""
    counts = count(mask, target)
    robust = np.nan if foreground is None else robustness(mask, target, foreground)
    accuracy = pixel_accuracy(counts, target.size)
    return np.array([region_similarity(counts), contour_accuracy(counts), accuracy, robust], dtype=np.float64)


def _row(
    video: Video,
    expression: Expression,
    predicted: PredictedVideo | None,
    means: NDArray[np.float64],
    frames: int,
) -> dict[str, Any]:
    answer = None if predicted is None else predicted.expressions.get(expression.id)
    distractor = expression.tags.get("distractor")
    J, F, A, R = (float(mean) for mean in means)
    return {
        "video": video.name,
        "expression": expression.id,
        "text": expression.text,
        "kind": expression.kind,
        "category": expression.tags.get("category"),
        "distractor": None if distractor is None else "yes" if distractor else "no",
        "frames": frames,
        "J": J,
        "F": F,
        "JF": (J + F) / 2,
        "A": A,
        "R": R,
        "fallback": None if answer is None else answer.fallback,
    }


def _foreground(benchmark: Benchmark, video: Video) -> list[dict[str, Any]] | None:
    """Everything annotated per frame, where the benchmark has it (ReVOS)."""
    give = getattr(benchmark, "foreground", None)
    return give(video) if callable(give) else None


def _groups(protocol: Protocol, rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Scores per value of each grouping column that has any."""
    groups = {}
    for column in ("category", "distractor", "kind"):
        parts = {str(value): protocol.group(part) for value, part in rows.groupby(column, sort=True)}
        if parts:
            groups[column] = parts
    return groups


def _extra_of(predicted: PredictedVideo, video: Video) -> int:
    asked = {expression.id for expression in video.expressions}
    masks = len(predicted.expressions) * len(predicted.frames)
    known = sum(1 for key in predicted.expressions if key in asked)
    return masks - known * sum(1 for frame in video.frames if frame in predicted.frames)


def _extra_masks(found: Predictions, name: str) -> int:
    predicted = found.read(name)
    return 0 if predicted is None else len(predicted.expressions) * len(predicted.frames)
