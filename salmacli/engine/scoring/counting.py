"""One video's predictions against its truth: whole numbers per expression and frame, from which all scores derive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from salmacli.data import rle
from salmacli.engine.scoring.predictions import PredictedVideo, Predictions, Said, fitting_bits
from salmacli.engine.scoring.problems import Problem, ProblemError
from salmacli.errors import DataError
from salmacli.metrics.bits import Bits, Mask
from salmacli.metrics.counts import NAMES, count, trace
from salmacli.metrics.revos import added_up, eight_bit_counts

if TYPE_CHECKING:
    from salmacli.data.benchmarks import Benchmark, Track
    from salmacli.data.records import Expression, Video

Accuracy = Literal["boolean", "8 bits"]
EIGHT_BITS = ("agree", "outside", "agree_rle", "outside_rle")


@dataclass(frozen=True)
class CountedVideo:
    """What was counted of one video with E expressions and T frames.

    Attributes:
        video: Its expressions and frames give the order.
        said: What the predictions tell of each expression beside its masks.
        columns: (E, T) int64 by name: the six counts, ``predicted`` and ``pixels`` of the mask and of the frame;
            where A and R are measured ``foreground``, and where that is in 8 bits the sums ``EIGHT_BITS``. A mask
            with a problem counts as an empty one.
        kinds: (E, T) kind of problem, or None.
        problems: How many masks each problem reaches.
        extra: How many masks nobody asked for, by video, expression or frame.
    """

    video: Video
    said: Sequence[Said]
    columns: dict[str, NDArray[np.int64]]
    kinds: NDArray[np.object_]
    problems: Counter[Problem] = field(default_factory=Counter)
    extra: Counter[str] = field(default_factory=Counter)


def count_video(
    benchmark: Benchmark, found: Predictions, video: Video, accuracy: Accuracy | None = None
) -> CountedVideo:
    """Count every prediction of a video.

    Args:
        benchmark: Gives the truth.
        found: The predictions.
        video: One of the benchmark's.
        accuracy: Whether what A and R need is counted, and in which arithmetic.

    Raises:
        DataError: No public truth, or predictions that are broken as a whole or answer another sentence.
    """
    predicted = found.read(video)
    shape = (len(video.expressions), len(video.frames))
    names = (*NAMES, "predicted", "pixels", *(EIGHT_BITS if accuracy == "8 bits" else ()))
    counted = CountedVideo(
        video,
        [Said() if predicted is None else predicted.said(expression.id) for expression in video.expressions],
        {name: np.zeros(shape, dtype=np.int64) for name in names},
        np.full(shape, None, dtype=object),
    )
    if predicted is not None:
        for expression in video.expressions:
            check_asked(benchmark, predicted, expression)
        counted.extra.update(extra_masks(predicted, video))
    for rows in _same_targets(video.expressions):
        _count_rows(benchmark, predicted, counted, rows, eight_bits=accuracy == "8 bits")
    if accuracy is not None:
        foreground = _foreground(benchmark, video, accuracy)
        if foreground is not None:
            counted.columns["foreground"] = np.tile(foreground, (shape[0], 1))
    return counted


def truth_of(benchmark: Benchmark, video: Video, expression: Expression) -> list[Bits]:
    """The truth of one expression, one mask per frame.

    Raises:
        DataError: The benchmark has no public truth.
    """
    truth = benchmark.truth_bits(video, expression)
    if truth is None:
        raise no_truth(benchmark)
    return truth


def no_truth(benchmark: Benchmark) -> DataError:
    """What there is to say of a benchmark whose truth is not public."""
    return DataError(
        f"{benchmark.name} {benchmark.split} has no public truth, so it cannot be scored here",
        "write a submission for its server from the predictions, or evaluate a split that has masks",
    )


def check_asked(benchmark: Benchmark, predicted: PredictedVideo, expression: Expression) -> None:
    """Refuse predictions that answer another sentence than the benchmark's.

    Raises:
        DataError: The sentences differ.
    """
    text = predicted.said(expression.id).text
    if text is not None and text != expression.text:
        raise DataError(
            f"{predicted.path}: expression {expression.id!r} answers {text!r}, but {benchmark.name}"
            f" {benchmark.split} in {benchmark.root} asks {expression.text!r}",
            "name the data root the predictions were made from, or predict again",
        )


def extra_masks(predicted: PredictedVideo, video: Video) -> Counter[str]:
    """Masks nobody asked for: how many, by ``video/expression`` or ``video/expression/frame``."""
    asked = {expression.id for expression in video.expressions}
    frames = set(video.frames)
    extra: Counter[str] = Counter()
    for expression, names in predicted.masks().items():
        where = f"{video.name}/{expression}"
        if expression in asked:
            extra.update(f"{where}/{name}" for name in names if name not in frames)
        else:
            extra[where] += len(names)
    return +extra


def _same_targets(expressions: Sequence[Expression]) -> Iterable[list[int]]:
    """Positions of the expressions that mean the same, so that their truth is prepared once."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for position, expression in enumerate(expressions):
        groups.setdefault(expression.targets, []).append(position)
    return groups.values()


def _count_rows(
    benchmark: Benchmark, predicted: PredictedVideo | None, counted: CountedVideo, rows: Sequence[int], eight_bits: bool
) -> None:
    """Count the predictions of expressions that share their truth, frame by frame."""
    video = counted.video
    first = video.expressions[rows[0]]
    truth = truth_of(benchmark, video, first)
    tracks = (benchmark.objects(video, first) or []) if eight_bits else []
    for t, bits in enumerate(truth):
        if predicted is not None:
            # To turn the truth once takes less time than to turn every prediction for it.
            bits = bits.turned(predicted.by_columns)
        traced = trace(bits)
        added = added_up(_masks(tracks, t), bits.shape) if eight_bits else None
        for row in rows:
            mask = _prediction(predicted, counted, row, t, bits)
            prediction = trace(mask)
            values = dict(zip(NAMES, count(prediction, traced).tolist(), strict=True))
            values |= {"predicted": prediction.area, "pixels": bits.height * bits.width}
            if added is not None:
                values |= _eight_bits(mask.to_mask(), added)
            for name, value in values.items():
                counted.columns[name][row, t] = value


def _prediction(predicted: PredictedVideo | None, counted: CountedVideo, row: int, t: int, truth: Bits) -> Bits:
    """One predicted mask in the order of the truth; an empty one in place of a problem, which is noted."""
    video = counted.video
    expression, frame = video.expressions[row].id, video.frames[t]
    try:
        bits = fitting_bits(predicted, video.name, expression, frame, truth.shape)
    except ProblemError as error:
        counted.problems[error.problem] += 1
        counted.kinds[row, t] = error.problem.kind
        return Bits.empty(*truth.shape, truth.by_columns)
    return bits.turned(truth.by_columns)


def _eight_bits(prediction: Mask, added: NDArray[np.uint8]) -> dict[str, int]:
    values = [value for path in (255, 1) for value in eight_bit_counts(prediction, added, path)]
    return dict(zip(EIGHT_BITS, values, strict=True))


def _foreground(benchmark: Benchmark, video: Video, accuracy: Accuracy) -> NDArray[np.int64] | None:
    """(T,) annotated pixels per frame, overlaps counted once or, in 8 bits, added up; None where not known."""
    united = benchmark.annotated_bits(video)
    if united is None:
        return None
    if accuracy == "boolean":
        return np.array([mask.area() for mask in united], dtype=np.int64)
    tracks = benchmark.annotated(video) or []
    sums = [added_up(_masks(tracks, t), mask.shape).sum(dtype=np.int64) for t, mask in enumerate(united)]
    return np.array(sums, dtype=np.int64)


def _masks(tracks: Sequence[Track], t: int) -> Iterable[Mask]:
    """The objects that are seen in a frame, as pictures."""
    return (rle.decode(one) for one in (track[t] for track in tracks) if one is not None)
