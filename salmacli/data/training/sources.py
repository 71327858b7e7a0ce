"""One set of the mix: what a visit takes of its samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from salmacli.data import rle
from salmacli.data.benchmarks import Benchmark, Track
from salmacli.data.conversation import Turn
from salmacli.data.frames import FrameSource
from salmacli.data.records import Video
from salmacli.data.talks import TalkSet
from salmacli.data.templates import ANSWERS, SEG, draw, questions
from salmacli.data.training.clips import Clip
from salmacli.data.training.moments import Choice, nearly_evenly, one_per_segment, to_segment
from salmacli.errors import DataError

OF_COCO = ("refcoco", "refcoco+", "refcocog", "grefcoco")
KEPT_TRACKS = 4096  # RLEs of so many objects stay in memory: about 25 MB for clips of a dozen frames


@dataclass(frozen=True)
class Sampling:
    """What a visit takes of a sample.

    Attributes:
        clip_frames: K, frames of a video that the LLM sees.
        decoded_frames: frames of a video that are segmented, at most.
        expressions: about one video, at most.
        choice: which frames are segmented.
    """

    clip_frames: int
    decoded_frames: int
    expressions: int
    choice: Choice = "random"


class Samples(ABC):
    """The samples of one set, by number."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, n: int) -> str:
        """A sample for messages, unique in the set."""

    @abstractmethod
    def pictures(self, n: int) -> int:
        """How many frames the LLM sees; −1 is one picture, of any size. Known without reading it."""

    @abstractmethod
    def characters(self, n: int) -> int:
        """Roughly how long everything is that is said. Known without reading it."""

    @abstractmethod
    def clip(self, n: int, name: str, rng: np.random.Generator) -> Clip:
        """Read a sample.

        Args:
            n: its number.
            name: what the clip is called.
            rng: decides what is drawn.

        Raises:
            DataError: it cannot be read.
        """

    @abstractmethod
    def texts(self) -> Iterable[str]:
        """All that is said, for a tokenizer from scratch."""


class Referred(Samples):
    """Videos and pictures of a benchmark, with expressions that each mean something to segment."""

    def __init__(self, benchmark: Benchmark, sampling: Sampling) -> None:
        if not benchmark.public:
            raise DataError(
                f"{benchmark.root}: the {benchmark.split} split of {benchmark.name} has no public masks",
                "train on a split that has them",
            )
        self.benchmark, self.sampling = benchmark, sampling
        self.videos = [video for video in benchmark.videos if video.expressions]
        self._kept: dict[tuple[str, str], Track] = {}

    def __len__(self) -> int:
        return len(self.videos)

    def name(self, n: int) -> str:
        """See `Samples`."""
        return self.videos[n].name

    def pictures(self, n: int) -> int:
        """See `Samples`."""
        return -1 if self.benchmark.still else self.sampling.clip_frames

    def characters(self, n: int) -> int:
        """See `Samples`."""
        lengths = [len(expression.text) for expression in self.videos[n].expressions]
        return sum(lengths) * min(self.sampling.expressions, len(lengths)) // len(lengths)

    def texts(self) -> Iterable[str]:
        """See `Samples`."""
        return {expression.text for video in self.videos for expression in video.expressions}

    def clip(self, n: int, name: str, rng: np.random.Generator) -> Clip:
        """See `Samples`."""
        video, sampling, seed = self.videos[n], self.sampling, _seed(rng)
        source = self.benchmark.frames(video)
        total, still = len(source), self.benchmark.still
        shown = np.zeros(1, int) if still else nearly_evenly(rng, total, sampling.clip_frames)
        decoded = to_segment(rng, total, sampling.decoded_frames, sampling.choice)
        count = min(sampling.expressions, len(video.expressions))
        asked = [video.expressions[n] for n in rng.choice(len(video.expressions), count, replace=False)]
        pictures = _read(source, [*shown, *decoded])
        masks = self._masks(video, name, decoded, source.size)
        nothing = np.zeros((len(decoded), *source.size), bool)
        return Clip(
            name=name,
            shown=tuple(pictures[n] for n in shown),
            frames=tuple(pictures[n] for n in decoded),
            dialogues=tuple((Turn(draw(rng, questions(one.text)), draw(rng, ANSWERS), one.text),) for one in asked),
            targets=tuple(tuple(sorted(one.targets)) for one in asked),
            masks=np.stack([np.logical_or.reduce([nothing, *(masks[key] for key in one.targets)]) for one in asked]),
            foreground=np.logical_or.reduce([nothing, *masks.values()]),
            still=still,
            seed=seed,
            scene=_scene(self.benchmark, video),
        )

    def _masks(self, video: Video, name: str, frames: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """(D, H, W) bool per object that any expression means, in chosen frames."""
        return {
            key: np.stack([_decoded(track[int(n)], size, f"{name}, object {key}, frame {n}") for n in frames])
            for key, track in self._tracks(video).items()
        }

    def _tracks(self, video: Video) -> dict[str, Track]:
        """The annotation of every object, which some sets have to make of pictures and which is kept."""
        tracks: dict[str, Track] = {}
        for expression in video.expressions:
            keys = [(video.name, key) for key in expression.targets]
            if not all(key in self._kept for key in keys):
                objects = self.benchmark.objects(video, expression) or []
                for key, track in zip(keys, objects, strict=True):
                    if len(track) != len(video.frames):
                        raise DataError(
                            f"video {video.name}, object {key[1]}: {len(track)} masks for {len(video.frames)} frames",
                            "fetch the masks that belong to these expressions",
                        )
                    self._keep(key, track)
            tracks |= {key[1]: self._kept[key] for key in keys}
        return tracks

    def _keep(self, key: tuple[str, str], track: Track) -> None:
        if len(self._kept) >= KEPT_TRACKS:
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = track


class Told(Samples):
    """Conversations about pictures, videos or nothing, with a mask here and there."""

    def __init__(self, talks: TalkSet, sampling: Sampling) -> None:
        self.talks, self.sampling = talks, sampling

    def __len__(self) -> int:
        return len(self.talks)

    def name(self, n: int) -> str:
        """See `Samples`."""
        return str(n)

    def pictures(self, n: int) -> int:
        """See `Samples`."""
        if not self.talks.shown(n):
            return 0
        return -1 if self.talks.still else self.sampling.clip_frames

    def characters(self, n: int) -> int:
        """See `Samples`."""
        return self.talks.length(n)

    def texts(self) -> Iterable[str]:
        """See `Samples`."""
        return self.talks.texts()

    def clip(self, n: int, name: str, rng: np.random.Generator) -> Clip:
        """See `Samples`."""
        talk, source, seed = self.talks.talk(n), self.talks.frames(n), _seed(rng)
        turns = tuple(
            Turn(str(rng.choice((one.question, *one.wordings))) if one.wordings else one.question, one.answer)
            for one in talk.rounds
        )
        given = sum(one.answer.count(SEG) for one in talk.rounds)
        if given != len(talk.targets):
            raise DataError(f"{talk.name}: {given} times {SEG} for {len(talk.targets)} masks", "fetch the set again")
        shown: tuple[np.ndarray, ...] = ()
        if source is not None:
            numbers = one_per_segment(rng, len(source), self.sampling.clip_frames)
            shown = tuple(_read(source, numbers).values())
        size = source.size if source is not None else (0, 0)
        masks = {
            key: _decoded(self.talks.mask(n, key, size), size, f"{talk.name}, {key}")
            for key in {*talk.targets, *talk.regions}
        }
        wanted = [masks[key][None] for key in talk.targets]
        return Clip(
            name=name,
            shown=shown,
            frames=shown[:1] if wanted else (),
            dialogues=(turns,),
            targets=tuple((key,) for key in talk.targets),
            masks=np.stack(wanted) if wanted else np.zeros((0, 0, *size), bool),
            foreground=np.logical_or.reduce(wanted) if wanted else np.zeros((0, *size), bool),
            regions=tuple(masks[key] for key in talk.regions),
            still=self.talks.still,
            seed=seed,
            scene=f"{self.talks.name} in {self.talks.root}: {n}",
        )


def _scene(benchmark: Benchmark, video: Video) -> str:
    """What shows the objects whose keys the set has.

    RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO speak of the same pictures of COCO by the same numbers of annotations,
    wherever each has them lie; the keys of others are their own.
    """
    if benchmark.name in OF_COCO:
        return f"COCO: {benchmark.frame_path(video, video.frames[0]).name}"
    return f"{benchmark.name} in {benchmark.root}: {video.name}"


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 63))


def _read(source: FrameSource, numbers: Sequence[int] | np.ndarray) -> dict[int, np.ndarray]:
    """Pictures by their numbers, in ascending order, each read once."""
    wanted = sorted({int(n) for n in numbers})
    # Other processes read other samples meanwhile.
    return dict(zip(wanted, source.read(wanted, threads=0), strict=True))


def _decoded(mask: Mapping[str, Any] | None, size: tuple[int, int], where: str) -> np.ndarray:
    """(H, W) bool of an object in one frame, empty where it is not seen."""
    if mask is None:
        return np.zeros(size, bool)
    try:
        found = rle.decode(mask)
    except DataError as error:
        raise DataError(f"{where}: {error}", "fetch the set again") from None
    if found.shape != size:
        raise DataError(f"{where}: its mask is {found.shape} but the frame is {size}", "fetch the set again")
    return found
