"""The training mix: which video comes when, and which of its frames and expressions a visit takes.

Everything random is a function of (seed, epoch, position), so that any step can be made again without what came
before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from salmacli.data import rle
from salmacli.data.benchmarks import Benchmark
from salmacli.data.frames import read_frame
from salmacli.data.records import Expression, Video
from salmacli.data.templates import ANSWERS, QUESTIONS
from salmacli.errors import DataError

KEPT_TRACKS = 4096  # RLEs of so many objects stay in memory: about 25 MB for clips of a dozen frames


@dataclass(frozen=True)
class Clip:
    """One visit to one video: O expressions, K frames for the LLM, D frames to segment.

    Attributes:
        name: set and video, for messages.
        shown: K times uint8 (H, W, 3).
        frames: D times uint8 (H, W, 3).
        expressions, questions, answers: O texts each.
        targets: O sets of mask keys; equal sets are the same object.
        masks: (O, D, H, W) bool.
        foreground: (D, H, W) bool, the union of everything annotated in the video.
    """

    name: str
    shown: tuple[np.ndarray, ...]
    frames: tuple[np.ndarray, ...]
    expressions: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    targets: tuple[tuple[str, ...], ...]
    masks: np.ndarray
    foreground: np.ndarray


@dataclass(frozen=True)
class BadClip:
    """A visit that could not be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Source:
    """One member of the mix and how often an epoch visits each of its videos."""

    benchmark: Benchmark
    repeats: int


def evenly(total: int, count: int) -> np.ndarray:
    """`count` frame indices from 0 to `total` − 1, evenly spread; repeated where the video is shorter."""
    return np.round(np.linspace(0, total - 1, count)).astype(int)


class TrainingMix:
    """All videos of all sources, each as often as its source's `repeats` says."""

    def __init__(
        self, sources: Sequence[Source], *, seed: int, clip_frames: int, decoded_frames: int, expressions: int
    ) -> None:
        self.sources = tuple(sources)
        self.visits = [
            (source.benchmark, video)
            for source in sources
            for video in source.benchmark.videos
            for _ in range(source.repeats)
            if video.expressions
        ]
        if not self.visits:
            names = ", ".join(str(source.benchmark.root) for source in sources)
            raise DataError(f"the training mix is empty: no video with an expression in {names}", "check data.train")
        self.seed, self.clip_frames = seed, clip_frames
        self.decoded_frames, self.expressions = decoded_frames, expressions
        self._kept: dict[tuple[int, str, tuple[str, ...]], list[rle.RLE] | None] = {}

    def __len__(self) -> int:
        return len(self.visits)

    def benchmarks(self) -> list[Benchmark]:
        """The sources' benchmarks, in the order of the mix."""
        return [source.benchmark for source in self.sources]

    def texts(self) -> list[str]:
        """Every expression in the mix, once."""
        return sorted({expression.text for _, video in self.visits for expression in video.expressions})

    def order(self, epoch: int) -> np.ndarray:
        """The visits of one epoch: a permutation of all of them."""
        return np.random.default_rng((self.seed, epoch)).permutation(len(self))

    def __getitem__(self, key: tuple[int, int]) -> Clip | BadClip:
        """Read visit `key` = (epoch, visit); what cannot be read comes back as a `BadClip` that says why."""
        epoch, visit = key
        benchmark, video = self.visits[visit]
        try:
            return self._clip(benchmark, video, np.random.default_rng((self.seed, epoch, visit)))
        except DataError as error:
            return BadClip(f"{benchmark.name}/{video.name}", str(error))

    def _clip(self, benchmark: Benchmark, video: Video, rng: np.random.Generator) -> Clip:
        total = len(video.frames)
        step = (total - 1) / max(self.clip_frames - 1, 1)
        # Prediction reads evenly spread frames; training moves each by up to half a step, which keeps their order.
        moved = np.linspace(0, total - 1, self.clip_frames) + rng.uniform(-step / 2, step / 2, self.clip_frames)
        shown = np.clip(np.round(moved), 0, total - 1).astype(int)
        decoded = np.sort(rng.choice(total, min(self.decoded_frames, total), replace=False))
        count = min(self.expressions, len(video.expressions))
        asked = [video.expressions[n] for n in rng.choice(len(video.expressions), count, replace=False)]
        pictures = {
            n: read_frame(benchmark.frame_path(video, video.frames[n])) for n in {*shown.tolist(), *decoded.tolist()}
        }
        size = pictures[int(decoded[0])].shape[:2]
        # Several expressions often mean the same object, which is then decoded once.
        masks = {
            expression.targets: self._masks(benchmark, video, expression, decoded, size)
            for expression in {one.targets: one for one in video.expressions}.values()
        }
        return Clip(
            name=f"{benchmark.name}/{video.name}",
            shown=tuple(pictures[int(n)] for n in shown),
            frames=tuple(pictures[int(n)] for n in decoded),
            expressions=tuple(expression.text for expression in asked),
            questions=tuple(QUESTIONS[n] for n in rng.integers(len(QUESTIONS), size=count)),
            answers=tuple(ANSWERS[n] for n in rng.integers(len(ANSWERS), size=count)),
            targets=tuple(tuple(sorted(expression.targets)) for expression in asked),
            masks=np.stack([masks[expression.targets] for expression in asked]),
            foreground=np.any(list(masks.values()), axis=0),
        )

    def _masks(
        self,
        benchmark: Benchmark,
        video: Video,
        expression: Expression,
        frames: np.ndarray,
        size: tuple[int, int],
    ) -> np.ndarray:
        """(D, H, W) bool masks of one expression in chosen frames."""
        where = f"{benchmark.name}/{video.name}, expression {expression.id}"
        truth = self._truth(benchmark, video, expression)
        if truth is None:
            raise DataError(
                f"{where}: the {benchmark.split} split has no public masks", "train on a split that has them"
            )
        masks = np.stack([rle.decode(truth[int(n)]) for n in frames])
        if masks.shape[1:] != size:
            raise DataError(f"{where}: masks are {masks.shape[1:]} but frames are {size}", "fetch the set again")
        return masks

    def _truth(self, benchmark: Benchmark, video: Video, expression: Expression) -> list[rle.RLE] | None:
        """The benchmark's truth, which unites and checks the masks of all frames, kept for the next visits."""
        key = (id(benchmark), video.name, expression.targets)
        if key not in self._kept:
            if len(self._kept) >= KEPT_TRACKS:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = benchmark.truth(video, expression)
        return self._kept[key]
