"""The masks of several expressions merged into planes that do not overlap, as a label picture has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from salmacli.engine.scoring.own_predictions import OwnPredictions, OwnVideo
from salmacli.engine.scoring.predictions import PredictedVideo, Predictions, fitting_bits
from salmacli.engine.scoring.problems import Problem, ProblemError
from salmacli.engine.scoring.sweep import upsample
from salmacli.errors import DataError
from salmacli.metrics.bits import Bits

if TYPE_CHECKING:
    from salmacli.data.records import Video

BACKGROUND, FOREGROUND = 0.1, 0.5  # probabilities: of no object at all, and the least that counts
Logits = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class SoftVideo:
    """The predictions of one video, as probabilities where these were kept.

    Attributes:
        name: Of the video.
        predicted: The masks; None where the video is missing.
        logits: (frames, h, w) by expression id, of those expressions whose logits were kept.
    """

    name: str
    predicted: PredictedVideo | None
    logits: Logits

    def merged(
        self, expressions: Sequence[str], frame: str, size: tuple[int, int]
    ) -> tuple[list[Bits], list[Problem | None]]:
        """The masks of one frame, made so that they do not overlap.

        Probabilities below a half are no foreground. A pixel that several expressions claim goes to the most
        probable of them, and among equals to the first. A binary mask has the probabilities 0 and 1.

        Args:
            expressions: Ids.
            frame: Its name.
            size: (height, width) of the truth.

        Returns:
            Per expression a mask, by columns, and the problem for which it is empty, or None.

        Raises:
            DataError: Masks and logits contradict each other.
        """
        masks: list[Bits] = []
        problems: list[Problem | None] = []
        for expression in expressions:
            try:
                mask = fitting_bits(self.predicted, self.name, expression, frame, size)
                masks.append(mask.turned(by_columns=True))
                problems.append(None)
            except ProblemError as error:
                masks.append(Bits.empty(*size, by_columns=True))
                problems.append(error.problem)
        soft = [mask_of in self.logits and not fault for mask_of, fault in zip(expressions, problems, strict=True)]
        if not any(soft):
            return _first_come(masks), problems
        most, labels = np.full(size, BACKGROUND, dtype=np.float32), np.zeros(size, dtype=np.uint8)
        for number, mask in enumerate(masks, start=1):
            claim = self._probability(expressions[number - 1], frame, size) if soft[number - 1] else mask.to_mask()
            wins = (claim >= FOREGROUND) & (claim > most)
            labels[wins], most[wins] = number, claim[wins]
        return [Bits.of_mask(labels == number, by_columns=True) for number in range(1, len(masks) + 1)], problems

    def _probability(self, expression: str, frame: str, size: tuple[int, int]) -> NDArray[np.float32]:
        """(height, width) float32, as the model gave it where it comes near to foreground and 0 elsewhere."""
        logits = self.logits[expression]
        assert isinstance(self.predicted, OwnVideo)
        if len(logits) != len(self.predicted.frames):
            raise DataError(
                f"{self.predicted.path.with_suffix('.npz')}: {expression!r} has {len(logits)} frames of logits for"
                f" {len(self.predicted.frames)} frames",
                "predict this video again",
            )
        logit = upsample(logits[self.predicted.frames[frame]], *size)
        near = logit > -1
        probability = np.zeros(size, dtype=np.float32)
        probability[near] = expit(logit[near])
        return probability


def read_soft(found: Predictions, video: Video) -> SoftVideo:
    """Read the predictions of one video and, of SALMA's own, the logits that were kept.

    Raises:
        DataError: They are broken as a whole.
    """
    predicted = found.read(video)
    kept = found.logits(video.name) if isinstance(found, OwnPredictions) and predicted is not None else None
    return SoftVideo(video.name, predicted, kept or {})


def _first_come(masks: Sequence[Bits]) -> list[Bits]:
    """The same masks, each without what those before it have."""
    merged, taken = [], None
    for mask in masks:
        merged.append(mask if taken is None else mask.without(taken))
        taken = mask if taken is None else taken | mask
    return merged
