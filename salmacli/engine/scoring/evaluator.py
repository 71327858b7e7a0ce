"""From predictions on disk to scores, by the rules of a benchmark's protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from salmacli.data.records import Video
from salmacli.engine.progress import Progress
from salmacli.engine.scoring.counting import count_video, extra_masks
from salmacli.engine.scoring.evaluation import Evaluation, results_of
from salmacli.engine.scoring.fallbacks import fallback_counts
from salmacli.engine.scoring.predictions import Predictions, open_predictions
from salmacli.engine.scoring.problems import Problem, refuse
from salmacli.engine.scoring.protocols import protocol_of
from salmacli.engine.scoring.tables import expression_table, frame_table
from salmacli.engine.threads import in_threads
from salmacli.errors import DataError

if TYPE_CHECKING:
    from salmacli.data.benchmarks import Benchmark

Missing = Literal["error", "zero", "drop"]


def evaluate(
    benchmark: Benchmark,
    predictions: Path,
    protocol: str | None = None,
    missing: Missing = "error",
    record: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score predictions.

    Args:
        benchmark: Gives the videos, the expressions and the truth.
        predictions: A folder or file in one of the forms of :func:`open_predictions`.
        protocol: One of the benchmark's; by default the one that people report.
        missing: A predicted mask that is missing or does not fit is an error, scores 0 whatever the truth, or is
            left out of the means. It is counted and named either way.
        record: ``run``, ``mode``, ``checkpoint`` and ``config`` for the results; what the predictions say of
            themselves fills what is left out.
        progress: Told of every video.

    Raises:
        DataError: No protocol or no public truth for this benchmark, predictions that are missing (with
            ``missing="error"``), broken as a whole, or of another benchmark.
        UsageError: The benchmark has no protocol of this name.
    """
    rules = protocol_of(benchmark.name, protocol)
    if rules.average is None:
        # Imported here since only this protocol needs it.
        from salmacli.engine.scoring.annotators import evaluate_annotators

        return evaluate_annotators(benchmark, predictions, rules.name, missing, record, progress)
    found = open_predictions(predictions)
    check_same(benchmark, found)
    if not any(video.expressions for video in benchmark.videos):
        raise DataError(f"{benchmark.name} {benchmark.split} in {benchmark.root} has no expression to score")
    counted = in_threads(
        lambda video: count_video(benchmark, found, video, rules.accuracy),
        benchmark.videos,
        f"scoring {benchmark.name}",
        progress,
    )
    check_given(benchmark, found, predictions)
    problems = sum((video.problems for video in counted), Counter[Problem]())
    if problems and missing == "error":
        refuse(problems, sum(video.kinds.size for video in counted), predictions)
    frames = frame_table(counted, missing, rules.accuracy)
    rows = expression_table(counted, frames, missing, rules.whole)
    scored = rules.counted(rows)
    if scored.empty:
        raise DataError(f"{predictions}: no expression of {benchmark.name} {benchmark.split} is left to score")
    scores = rules.scores(scored)
    said = [one for video in counted for one in video.said]
    extra = sum((video.extra for video in counted), extra_videos(benchmark, found))
    counts = {
        "videos": int(scored["video"].nunique()),
        "expressions": len(scored),
        "left_out": len(rows) - len(scored),
        "frames": int(scored["frames"].sum()),
        **fallback_counts([said[row] for row in scored.index], found.record),
    }
    results = results_of(
        origin(benchmark, found, record or {}),
        rules,
        missing,
        scores,
        counts,
        problems,
        extra,
        **({"micro": rules.flat(scored)} if rules.macro else {}),
        groups=rules.groups(scored),
    )
    return Evaluation(results, rows, frames)


def origin(benchmark: Benchmark, found: Predictions, record: Mapping[str, Any]) -> dict[str, Any]:
    """What results say of where they come from; what the predictions say fills what ``record`` leaves out."""
    return {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "synthetic": benchmark.synthetic,
        "settings": found.record.get("settings", {}),
        "resolved": found.record.get("resolved", {}),
        **{key: record.get(key, found.record.get(key)) for key in ("mode", "run", "checkpoint", "config")},
    }


def check_same(benchmark: Benchmark, found: Predictions) -> None:
    """Refuse predictions that say they are of another benchmark or split.

    Raises:
        DataError: They are.
    """
    for key, asked in (("benchmark", benchmark.name), ("split", benchmark.split)):
        said = found.record.get(key, asked)
        if said != asked:
            raise DataError(f"{found.path} holds predictions of {key} {said!r}, not {asked!r}", "name the other one")


def check_given(benchmark: Benchmark, found: Predictions, predictions: Path) -> None:
    """Refuse predictions of other videos only: somebody named the wrong place, and nothing is to be scored 0 for it.

    Raises:
        DataError: They have none of the benchmark's videos.
    """
    if found.videos().isdisjoint(video.name for video in benchmark.videos):
        raise DataError(
            f"{predictions} has predictions of none of the {len(benchmark.videos)} videos of {benchmark.name}"
            f" {benchmark.split}",
            "name the folder that holds the videos, or the JSON file itself",
        )


def extra_videos(benchmark: Benchmark, found: Predictions) -> Counter[str]:
    """Masks of videos nobody asked for; what cannot be read as a video counts as one."""
    extra: Counter[str] = Counter()
    for name in sorted(found.videos() - {video.name for video in benchmark.videos}):
        try:
            predicted = found.read(Video(name, (), ()))
            masks = 0 if predicted is None else sum(extra_masks(predicted, Video(name, (), ())).values())
        except DataError:
            masks = 0  # no predictions at all, but something that lies there
        extra[name] = max(masks, 1)
    return extra
