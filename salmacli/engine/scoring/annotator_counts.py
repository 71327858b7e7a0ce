"""One video of Ref-DAVIS17, annotator by annotator: every merged mask counted against every object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from salmacli.data.readers import checks
from salmacli.data.readers.ref_davis import ANNOTATORS, NumberedSet
from salmacli.engine.scoring.counting import check_asked, extra_masks, truth_of
from salmacli.engine.scoring.label_counts import MOST_PROPOSALS, read_truth
from salmacli.engine.scoring.matching import pair
from salmacli.engine.scoring.merging import read_soft
from salmacli.engine.scoring.predictions import Predictions, Said
from salmacli.engine.scoring.problems import Problem
from salmacli.errors import DataError
from salmacli.metrics.bits import Bits
from salmacli.metrics.counts import Counts, trace

if TYPE_CHECKING:
    from pathlib import Path

    from salmacli.data.benchmarks import Benchmark
    from salmacli.data.records import Expression, Video


@dataclass
class CountedAnnotator:
    """What was counted of one video for one annotator.

    Attributes:
        annotator: Its number, 0 to 3.
        video: The video.
        expressions: The annotator's, one per object.
        objects: How many the first true frame has; without one there is nothing to score.
        pixels: Of a frame.
        pairs: Per frame what ``pair`` gives, up to the last mask that is not empty.
        faults: Per frame and expression what is wrong with the prediction, or None.
    """

    annotator: int
    video: Video
    expressions: list[Expression]
    objects: int = 0
    pixels: int = 0
    pairs: list[Counts] = field(default_factory=list)
    faults: list[list[Problem | None]] = field(default_factory=list)


@dataclass(frozen=True)
class CountedByAnnotators:
    """What was counted of one video.

    Attributes:
        annotators: One after the other.
        soft: How many expressions were merged by their probabilities.
        extra: How many masks nobody asked for, by expression or frame.
        said: What the predictions tell of each expression.
    """

    annotators: list[CountedAnnotator]
    soft: int = 0
    extra: Counter[str] = field(default_factory=Counter)
    said: list[Said] = field(default_factory=list)


def count_by_annotators(benchmark: Benchmark, found: Predictions, video: Video) -> CountedByAnnotators:
    """Count every prediction of a video.

    Args:
        benchmark: Gives the truth.
        found: The predictions.
        video: One of the benchmark's.

    Raises:
        DataError: The video has not four expressions per object or too many objects; its truth is missing or
            broken; or predictions are broken as a whole or answer another sentence.
    """
    expressions = _by_number(video)
    given = read_soft(found, video)
    said = []
    if given.predicted is not None:
        for expression in expressions:
            check_asked(benchmark, given.predicted, expression)
            said.append(given.predicted.said(expression.id))
    counted = CountedByAnnotators(
        [CountedAnnotator(number, video, expressions[number::ANNOTATORS]) for number in range(ANNOTATORS)],
        soft=sum(expression.id in given.logits for expression in expressions),
        extra=Counter() if given.predicted is None else extra_masks(given.predicted, video),
        said=said,
    )
    for frame, (objects, void) in zip(video.frames, _truth(benchmark, video, expressions), strict=True):
        if not objects:
            break
        traced = [trace(mask) for mask in objects]
        size = objects[0].shape
        for one in counted.annotators:
            masks, faults = given.merged([expression.id for expression in one.expressions], frame, size)
            # As in a label picture, the highest number in it says how many there are.
            while masks and not masks[-1].area():
                masks.pop()
            one.pairs.append(pair([mask.without(void) for mask in masks] if void else masks, traced))
            one.faults.append(faults)
            one.objects, one.pixels = len(objects), size[0] * size[1]
    return counted


def label_paths(benchmark: Benchmark, video: Video) -> list[Path]:
    """The official PNGs of a video; none where the set has only run-length encoded masks, which know no void."""
    if not isinstance(benchmark, NumberedSet):
        return []
    return [path for frame in video.frames if (path := benchmark.labels_path(video, frame)) is not None]


def _by_number(video: Video) -> list[Expression]:
    """The expressions by their number: that of object and annotator together."""
    ordered = sorted(video.expressions, key=lambda one: checks.number(one.id, f"video {video.name}, expression"))
    objects, rest = divmod(len(ordered), ANNOTATORS)
    if rest or not objects:
        raise DataError(
            f"video {video.name} has {len(ordered)} expressions, not {ANNOTATORS} for each object",
            "score it with --protocol expression",
        )
    if objects > MOST_PROPOSALS:
        raise DataError(
            f"video {video.name} has expressions for {objects} objects, at most {MOST_PROPOSALS} are matched"
        )
    return ordered


def _truth(
    benchmark: Benchmark, video: Video, expressions: Sequence[Expression]
) -> Iterator[tuple[list[Bits], Bits | None]]:
    """Per frame the objects' masks and void, by columns, as run-length encoded predictions are."""
    paths = label_paths(benchmark, video)
    if paths:
        yield from _truth_of_labels(paths)
        return
    tracks = [truth_of(benchmark, video, expression) for expression in expressions[::ANNOTATORS]]
    objects = max((number for number, track in enumerate(tracks, start=1) if track[0].area()), default=0)
    for t in range(len(video.frames)):
        yield [track[t].turned(by_columns=True) for track in tracks[:objects]], None


def _truth_of_labels(paths: Sequence[Path]) -> Iterator[tuple[list[Bits], Bits | None]]:
    objects: int | None = None
    for picture in read_truth(paths):
        objects = picture.objects if objects is None else objects
        void = picture.void
        masks = [mask.turned(by_columns=True) for mask in picture.masks(objects)]
        yield masks, None if void is None else void.turned(by_columns=True)
