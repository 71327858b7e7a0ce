"""J&F on a slice of a benchmark while training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from salmacli.config.schema import PredictConfig, ValidationConfig
from salmacli.data.benchmarks import Benchmark
from salmacli.data.records import Video
from salmacli.engine.prediction.predictor import Predictor
from salmacli.engine.prediction.shares import share
from salmacli.engine.prediction.tracks import Track
from salmacli.engine.scoring.counting import no_truth, truth_of
from salmacli.errors import UsageError
from salmacli.metrics.bits import Bits
from salmacli.metrics.contour import contour_accuracy
from salmacli.metrics.counts import count
from salmacli.metrics.region import region_similarity
from salmacli.models.salma import Salma

Item = TypeVar("Item")


class Validation:
    """A slice of a benchmark, and who predicts what of it.

    Args:
        config: how large the slice is.
        benchmark: with public truth.
        rank, ranks: of this process; videos are shared out.

    Raises:
        UsageError: the benchmark's truth is not public.
    """

    def __init__(self, config: ValidationConfig, benchmark: Benchmark, rank: int = 0, ranks: int = 1) -> None:
        if not benchmark.public:
            raise UsageError(str(no_truth(benchmark).args[0]), "choose another train.validation.set or .split")
        asked = [video for video in benchmark.videos if video.expressions]
        chosen = spread(asked, config.videos)
        costs = [len(video.frames) * len(video.expressions) for video in chosen]
        self.benchmark = benchmark
        self.mine: Sequence[Video] = [chosen[n] for n in share(costs, ranks)[rank]]

    def sums(self, model: Salma) -> np.ndarray:
        """Predict this process's videos in the model's own mode.

        Args:
            model: whole, on its device; its training or evaluation state is left as it was.

        Returns:
            (3,) sums of J and of F over expressions, and how many they are.
        """
        training, scale = model.training, model.cma.scale if model.cma is not None else 1.0
        try:
            if model.cma is not None:
                model.cma.scale = 1.0  # a checkpoint knows no warm-up
            predictor = Predictor(model, PredictConfig())
            total = np.zeros(3)
            for video in self.mine:
                texts = [expression.text for expression in video.expressions]
                for row, track in enumerate(predictor.video(self.benchmark.frames(video), texts)):
                    total += (*self._score(video, row, track), 1)
            return total
        finally:
            model.train(training)
            if model.cma is not None:
                model.cma.scale = scale

    def _score(self, video: Video, row: int, track: Track) -> tuple[float, float]:
        """Mean J and F of one expression over the frames."""
        truth = truth_of(self.benchmark, video, video.expressions[row])
        counted = np.stack([count(Bits.of_mask(track.mask(n)), true) for n, true in enumerate(truth)])
        return float(region_similarity(counted).mean()), float(contour_accuracy(counted).mean())


def scores(sums: np.ndarray) -> dict[str, float]:
    """J, F and their mean, of the sums of all processes.

    A slice is no benchmark: gRefCOCO's and ReVOS's own averages are those of `salma eval`.
    """
    J, F = sums[:2] / max(sums[2], 1)
    return {"J": float(J), "F": float(F), "JF": float((J + F) / 2)}


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of some items, evenly spread."""
    places = np.unique(np.round(np.linspace(0, len(items) - 1, min(count, len(items)))).astype(int))
    return [items[n] for n in places]
