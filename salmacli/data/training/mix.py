"""All samples of all sets, each as often as its set's `repeats` says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from salmacli.data.benchmarks import Benchmark
from salmacli.data.talks import TalkSet
from salmacli.data.training.clips import BadClip, Clip
from salmacli.data.training.sources import Referred, Samples, Sampling, Told
from salmacli.errors import DataError

CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Source:
    """One member of the mix.

    Attributes:
        set: what it reads.
        repeats: how often an epoch visits each of its samples.
        left_out: entries of its file that were broken and are not in it.
    """

    set: Benchmark | TalkSet
    repeats: int
    left_out: int = 0


@dataclass(frozen=True)
class Grouping:
    """How long conversations are, roughly, for batches of like length.

    Attributes:
        picture_tokens: of a frame, or of a tile of a picture.
        tiles: of a picture, at most.
    """

    picture_tokens: int
    tiles: int


class TrainingMix:
    """Visits by number; visit after visit of the first sample of the first source, and so on.

    Args:
        sources: at least one that has a sample.
        seed: of everything that is drawn.
        sampling: what a visit takes.
        grouping: None takes samples in any order.

    Raises:
        DataError: there is no sample, or a set has no masks to train on.
    """

    def __init__(
        self, sources: Sequence[Source], seed: int, sampling: Sampling, grouping: Grouping | None = None
    ) -> None:
        self.sources, self.seed, self.grouping = tuple(sources), seed, grouping
        self.samples: list[Samples] = [
            Referred(one.set, sampling) if isinstance(one.set, Benchmark) else Told(one.set, sampling)
            for one in self.sources
        ]
        self._ends = np.cumsum([len(some) * one.repeats for some, one in zip(self.samples, self.sources, strict=True)])
        if not len(self):
            names = ", ".join(str(source.set.root) for source in sources)
            raise DataError(f"the training mix is empty: no sample in {names}", "check data.train")
        twice = Counter(one.set.name for one in self.sources)
        # Messages tell which of them a sample is of.
        self.names = [
            one.set.name if twice[one.set.name] == 1 else f"{one.set.name} ({n})"
            for n, one in enumerate(self.sources, start=1)
        ]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def place(self, visit: int) -> tuple[int, int]:
        """Which source and which of its samples a visit goes to."""
        source = int(np.searchsorted(self._ends, visit, side="right"))
        first = int(self._ends[source - 1]) if source else 0
        return source, (visit - first) // self.sources[source].repeats

    def one_of_each(self, count: int) -> Iterator[list[int]]:
        """`count` visits to each source in turn, to samples that differ where it has so many."""
        for number, (samples, source) in enumerate(zip(self.samples, self.sources, strict=True)):
            first = int(self._ends[number - 1]) if number else 0
            yield [first + n % len(samples) * source.repeats for n in range(count)] if len(samples) else []

    def sets(self) -> list[Benchmark | TalkSet]:
        """The sets of the sources, in their order."""
        return [source.set for source in self.sources]

    def texts(self) -> list[str]:
        """Everything that is said in the mix, once."""
        return sorted({text for samples in self.samples for text in samples.texts()})

    def __getitem__(self, key: tuple[int, int]) -> Clip | BadClip:
        """Read visit `key` = (epoch, visit); what cannot be read comes back as a `BadClip` that says why."""
        epoch, visit = key
        source, n = self.place(visit)
        samples = self.samples[source]
        name = f"{self.names[source]}/{samples.name(n)}"
        try:
            return samples.clip(n, name, np.random.default_rng((self.seed, epoch, visit)))
        except DataError as error:
            return BadClip(name, str(error))

    @cached_property
    def lengths(self) -> np.ndarray | None:
        """(visits,) roughly the tokens of each visit's conversation; None where they are not grouped."""
        if self.grouping is None:
            return None
        parts = [
            np.repeat([self._tokens(samples, n, self.grouping) for n in range(len(samples))], source.repeats)
            for samples, source in zip(self.samples, self.sources, strict=True)
        ]
        return np.concatenate(parts)

    @staticmethod
    def _tokens(samples: Samples, n: int, grouping: Grouping) -> int:
        pictures = samples.pictures(n)
        if pictures < 0:
            # Usual pictures have an aspect ratio for which as many tiles as possible are taken, and the whole of it.
            pictures = grouping.tiles + (grouping.tiles > 1)
        return pictures * grouping.picture_tokens + samples.characters(n) // CHARACTERS_PER_TOKEN
