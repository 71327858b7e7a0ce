"""Every threshold on a run's saved mask logits, each mask read once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from salmacli.config.files import write_json
from salmacli.engine.progress import Progress
from salmacli.engine.scoring.counting import check_asked, truth_of
from salmacli.engine.scoring.evaluator import check_same
from salmacli.engine.scoring.own_predictions import OwnPredictions, OwnVideo
from salmacli.engine.scoring.problems import ProblemError
from salmacli.engine.scoring.protocols import PROTOCOLS, protocol_of
from salmacli.engine.threads import in_threads
from salmacli.errors import DataError
from salmacli.metrics.threshold import Choice, choose, dice, intersection_over_union, sweep

if TYPE_CHECKING:
    from salmacli.data.benchmarks import Benchmark
    from salmacli.data.records import Video

SCHEMA = 1
RULE = "foreground where sigmoid(logit) >= threshold; both masks empty 1, one empty 0"


@dataclass(frozen=True)
class Sweep:
    """Scores per threshold.

    Attributes:
        thresholds: (K,) ascending probabilities.
        videos: (rows,) the video of each expression.
        iou: (rows, K) IoU of each expression, meaned over its frames.
        dice: (rows, K) likewise.
    """

    thresholds: NDArray[np.float64]
    videos: tuple[str, ...]
    iou: NDArray[np.float64]
    dice: NDArray[np.float64]

    def record(self) -> dict[str, Any]:
        """What ``threshold_sweep.json`` holds beside its origin."""
        return {
            "schema": SCHEMA,
            "rule": RULE,
            "mean": "over frames, then over expressions",
            "expressions": len(self.videos),
            "videos": len(set(self.videos)),
            "thresholds": self.thresholds.tolist(),
            "iou": self.iou.mean(axis=0).tolist(),
            "dice": self.dice.mean(axis=0).tolist(),
            "best": {
                "iou": _choice(choose(self.iou, self.thresholds, self.videos)),
                "dice": _choice(choose(self.dice, self.thresholds, self.videos)),
            },
        }


def sweep_predictions(
    benchmark: Benchmark,
    predictions: Path,
    thresholds: NDArray[np.float64],
    progress: Progress | None = None,
) -> Sweep:
    """Score the saved logits of a predictions folder at every threshold.

    Args:
        benchmark: Gives the videos, the expressions and the truth.
        predictions: Folder with ``<video>.json`` and ``<video>.npz``.
        thresholds: (K,) ascending, inside 0..1.
        progress: Told of every video.

    Raises:
        DataError: Logits, predictions or truth are missing or do not fit.
    """
    found = OwnPredictions(predictions)
    check_same(benchmark, found)
    swept = in_threads(
        lambda video: _sweep_video(benchmark, found, video, thresholds),
        benchmark.videos,
        "sweeping thresholds",
        progress,
    )
    rows = [(video.name, row) for video, of_video in zip(benchmark.videos, swept, strict=True) for row in of_video]
    if not rows:
        raise DataError(f"{predictions}: {benchmark.name} {benchmark.split} has no expression to sweep")
    scores = np.stack([row for _, row in rows])
    return Sweep(thresholds, tuple(video for video, _ in rows), scores[:, 0], scores[:, 1])


def write_sweep(record: dict[str, Any], folder: Path) -> Path:
    """Write ``threshold_sweep.json`` into an evaluation's folder."""
    path = folder / "threshold_sweep.json"
    write_json(path, record)
    return path


def has_logits(benchmark: Benchmark, predictions: Path, step: int | None = None) -> bool:
    """Whether a folder holds logits of every video of a benchmark, by the checkpoint of ``step``."""
    if not predictions.is_dir():
        return False
    record = OwnPredictions(predictions).record
    checkpoint = record.get("checkpoint")
    found = checkpoint.get("step") if isinstance(checkpoint, dict) else None
    if record.get("split") != benchmark.split or (step is not None and found != step):
        return False
    names = [f"{video.name}.{kind}" for video in benchmark.videos for kind in ("json", "npz")]
    return all((predictions / name).exists() for name in names)


def upsample(logits: NDArray[np.floating[Any]], height: int, width: int) -> NDArray[np.float32]:
    """Bilinear resizing as torch's ``interpolate(..., align_corners=False)`` does it.

    Args:
        logits: (h, w).
        height: Rows of the result.
        width: Columns of the result.

    Returns:
        (height, width) float32.
    """
    logits = logits.astype(np.float32, copy=False)
    above, below, down = _neighbours(logits.shape[0], height)
    left, right, across = _neighbours(logits.shape[1], width)
    rows = logits[above] * (1 - down)[:, None] + logits[below] * down[:, None]
    return np.asarray(rows[:, left] * (1 - across) + rows[:, right] * across, dtype=np.float32)


def _neighbours(size: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The two source positions of every wanted one, and the weight of the second."""
    scale = np.float32(size) / np.float32(wanted)
    source = np.maximum(scale * (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    first = np.minimum(source.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    return first, second, np.minimum(source - first, 1).astype(np.float32)


def _sweep_video(
    benchmark: Benchmark, found: OwnPredictions, video: Video, thresholds: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """(2, K) IoU and Dice of every counted expression of one video."""
    predicted, logits = found.read(video), found.logits(video.name)
    if predicted is None or logits is None:
        suffix = "json" if predicted is None else "npz"
        raise DataError(f"{found.path}: {video.name}.{suffix} is missing", "predict again: salma threshold-sweep")
    # A threshold on the probability is one on the logit. Logits are compared, because a sigmoid in floating
    # point makes 0.5 of many of them; a logit of exactly 0 is foreground here and background in the masks
    # the predictor wrote (logit > 0), which real logits do not meet.
    limits = np.log(thresholds) - np.log1p(-thresholds)
    kinds = protocol_of(benchmark.name).kinds if benchmark.name in PROTOCOLS else None
    rows = []
    for expression in video.expressions:
        if kinds is not None and expression.kind not in kinds:
            continue
        check_asked(benchmark, predicted, expression)
        truth = (bits.to_mask() for bits in truth_of(benchmark, video, expression))
        counts = [
            sweep(_scores(predicted, logits, expression.id, frame, target, found.record.get("by_side")), target, limits)
            for frame, target in zip(video.frames, truth, strict=True)
        ]
        stacked = np.stack(counts)
        rows.append(np.stack([intersection_over_union(stacked).mean(0), dice(stacked).mean(0)]))
    return rows


def _scores(
    predicted: OwnVideo,
    logits: dict[str, NDArray[np.float32]],
    expression: str,
    frame: str,
    target: NDArray[np.bool_],
    by_side: int | None,
) -> NDArray[np.floating[Any]]:
    """Logits of one frame at the size of the truth; of a fall-back its mask, which no threshold moves.

    With `by_side` they pass through a square of that side first, as the masks of mode "sa2va" did.
    """
    if predicted.size != target.shape:
        raise DataError(f"{predicted.path} is of size {predicted.size} where the truth is {target.shape}")
    try:
        mask = predicted.bits(expression, frame).to_mask()
    except ProblemError as error:
        raise DataError(f"{predicted.path}: {error}", "predict this video again") from None
    if expression not in logits:
        if predicted.said(expression).fallback is None:
            raise DataError(f"{predicted.path.with_suffix('.npz')} lacks expression {expression!r}")
        return np.where(mask, np.inf, -np.inf)
    of_expression = logits[expression]
    if len(of_expression) != len(predicted.frames):
        raise DataError(
            f"{predicted.path.with_suffix('.npz')}: {expression!r} has {len(of_expression)} frames of"
            f" logits for {len(predicted.frames)} frames",
            "predict this video again",
        )
    one = of_expression[predicted.frames[frame]]
    return upsample(one if by_side is None else upsample(one, by_side, by_side), *target.shape)


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "threshold": choice.threshold,
        "score": choice.score,
        "held_out": choice.held_out,
        "fold_thresholds": list(choice.folds),
    }
