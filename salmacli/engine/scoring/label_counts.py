"""One sequence of label pictures against its truth: whole numbers per object and frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from salmacli.data.label_pictures import VOID, LabelError, Labels, picture_names, read_labels
from salmacli.engine.scoring.matching import pair
from salmacli.engine.scoring.problems import Problem
from salmacli.errors import DataError
from salmacli.metrics.bits import Bits
from salmacli.metrics.counts import Counts, count_labels, trace

MOST_PROPOSALS = 20  # as many as the official tool takes


@dataclass
class CountedSequence:
    """What was counted of one sequence.

    Attributes:
        name: Of its folder.
        frames: Names of the scored frames.
        objects: How many objects its first true frame has.
        shape: (height, width) of its frames.
        counts: Per frame (objects, 6) where identities are given, else what ``pair`` gives. A prediction with a
            fault counts as an empty one.
        faults: Per frame what is wrong with its prediction, or None.
        proposals: The highest predicted label.
        extra: Pictures and labels that nobody asked for.
        unscored: Labels of the truth that its first frame does not have.
    """

    name: str
    frames: list[str]
    objects: int
    shape: tuple[int, int]
    counts: list[Counts] = field(default_factory=list)
    faults: list[Problem | None] = field(default_factory=list)
    proposals: int = 0
    extra: set[str] = field(default_factory=set)
    unscored: set[str] = field(default_factory=set)


def count_sequence(truth_dir: Path, prediction_dir: Path, matching: bool, skip_ends: bool) -> CountedSequence:
    """Read and count a sequence frame by frame, so that two pictures are held at a time and not all.

    Args:
        truth_dir: Holds ``<frame>.png``.
        prediction_dir: Holds the same frames, or is missing.
        matching: Identities are free: each prediction is counted against each object, and void is taken out of
            predictions. Otherwise label n is object n, and void is background.
        skip_ends: The first and the last frame are not scored.

    Raises:
        DataError: The truth is broken, or predictions have more labels than may be matched.
    """
    names = pictures(truth_dir)
    if not names:
        raise DataError(f"{truth_dir} has no PNG", "every sequence of the truth needs its label pictures")
    asked = names[1:-1] if skip_ends else names
    if not asked:
        raise DataError(
            f"{truth_dir} has {len(names)} frames, none beside the first and last", "leave this sequence out"
        )
    truths = read_truth([truth_dir / f"{name}.png" for name in names])
    first = next(truths)
    objects = first.objects
    if not objects:
        raise DataError(
            f"{truth_dir / names[0]}.png has no object", "the first frame says which objects a sequence has"
        )
    counted = CountedSequence(truth_dir.name, asked, objects, first.shape)
    given = prediction_dir.is_dir()
    if given:
        counted.extra.update(f"{counted.name}/{name}" for name in set(pictures(prediction_dir)) - set(names))
    for name, truth in zip(asked, truths if skip_ends else chain([first], truths), strict=False):
        predicted, fault = (
            _prediction(counted, prediction_dir / f"{name}.png") if given else (None, Problem("video", truth_dir.name))
        )
        counted.faults.append(fault)
        _note(counted.unscored, counted, truth, truth.objects)
        counted.counts.append((_match if matching else _identify)(counted, predicted, truth))
    return counted


def pictures(folder: Path) -> list[str]:
    """Names of a folder's PNGs in order, without suffix; hidden files are no pictures.

    Raises:
        DataError: The names are numbers, and their order as names is not that of the numbers.
    """
    names = picture_names(folder)
    if all(name.isdecimal() for name in names) and names != sorted(names, key=int):
        raise DataError(
            f"the frames of {folder} are not in order: {names[0]}, {names[1]}, …", "number them with leading zeros"
        )
    return names


@dataclass(frozen=True)
class Picture:
    """A label picture; masks are made of the labels that are asked for."""

    labels: Labels

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.labels.shape[0], self.labels.shape[1]

    @cached_property
    def highest(self) -> int:
        """The highest label; 0 where there is only background."""
        return int(self.labels.max(initial=0))

    @property
    def objects(self) -> int:
        """The highest label that is not void."""
        known = self.labels[self.labels != VOID] if self.highest == VOID else None
        return self.highest if known is None else int(known.max(initial=0))

    @property
    def void(self) -> Bits | None:
        """What nobody knows; None where all is known."""
        return Bits.of_label(self.labels, VOID) if self.highest == VOID else None

    def masks(self, number: int) -> list[Bits]:
        """The masks of the labels from 1 to a number."""
        # Above the highest one nothing needs to be looked for.
        return [
            Bits.of_label(self.labels, label) if label <= self.highest else Bits.empty(*self.shape)
            for label in range(1, number + 1)
        ]

    def has(self, label: int) -> bool:
        """Whether a label is seen."""
        return bool((self.labels == label).any())


def read_truth(paths: Sequence[Path]) -> Iterator[Picture]:
    """Read the label pictures of a sequence one by one.

    Raises:
        DataError: One is missing, broken or of another size than the first.
    """
    shape: tuple[int, int] | None = None
    for path in paths:
        picture = Picture(read_labels(path))
        if shape is None:
            shape = picture.shape
        elif picture.shape != shape:
            raise DataError(
                f"{path} is of size {picture.shape} where {paths[0].name} is {shape}",
                "give all frames of a sequence in one size",
            )
        yield picture


def _prediction(counted: CountedSequence, path: Path) -> tuple[Picture | None, Problem | None]:
    """A predicted picture, or why it cannot be used."""
    where = f"{counted.name}/{path.stem}"
    try:
        picture = Picture(read_labels(path))
    except LabelError as error:
        return None, Problem(error.kind, where, "" if error.kind == "frame" else str(error))
    if picture.shape != counted.shape:
        return None, Problem("size", where, f"it is of size {picture.shape} where the truth is {counted.shape}")
    return picture, None


def _identify(counted: CountedSequence, predicted: Picture | None, truth: Picture) -> Counts:
    """(objects, 6): label n against object n."""
    if predicted is None:
        return count_labels(np.zeros_like(truth.labels), truth.labels, counted.objects)
    _note(counted.extra, counted, predicted, predicted.highest)
    return count_labels(predicted.labels, truth.labels, counted.objects)


def _match(counted: CountedSequence, predicted: Picture | None, truth: Picture) -> Counts:
    """Every label against every object."""
    highest = 0 if predicted is None else predicted.highest
    if highest > MOST_PROPOSALS:
        raise DataError(
            f"the predictions of {counted.name} have label {highest}, unsupervised scoring takes {MOST_PROPOSALS}",
            "number the proposals from 1; 255 is no void in predictions",
        )
    counted.proposals = max(counted.proposals, highest)
    proposals, void = _masks(predicted, truth, highest), truth.void
    if void is not None:
        proposals = [mask.without(void) for mask in proposals]
    return pair(proposals, [trace(mask) for mask in truth.masks(counted.objects)])


def _masks(predicted: Picture | None, truth: Picture, number: int) -> list[Bits]:
    """The predicted masks from 1 to a number; a prediction with a fault has empty ones."""
    return [Bits.empty(*truth.shape)] * number if predicted is None else predicted.masks(number)


def _note(names: set[str], counted: CountedSequence, picture: Picture, highest: int) -> None:
    """Note which labels a picture has beyond the objects, each once."""
    # To look for each is quicker than to sort all pixels, unless there may be many.
    some = range(counted.objects + 1, highest + 1)
    for label in some if len(some) <= MOST_PROPOSALS else np.unique(picture.labels[picture.labels > counted.objects]):
        if label > highest:
            continue
        name = f"{counted.name}, label {label}"
        if name not in names and picture.has(label):
            names.add(name)
