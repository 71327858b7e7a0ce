"""Looks through a set on disk and tells what is there and what is to be mended, all of it and not just the first."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from salmacli.data import rle
from salmacli.data.ahead import in_order
from salmacli.data.benchmarks import Benchmark
from salmacli.data.frames import FrameSource
from salmacli.data.records import Video
from salmacli.data.talks import TalkSet
from salmacli.engine.progress import Progress
from salmacli.errors import DataError

FEW = 5  # faults of a kind that are told; all are counted
NAMES, EMPTY, ENTRIES, MISSING, PICTURES, SIZES, MASKS, BLANK = KINDS = (
    "names that lead outside",
    "empty texts",
    "broken entries",
    "missing files",
    "files that cannot be read",
    "sizes that differ",
    "broken masks",
    "empty masks",
)


@dataclass
class Findings:
    """What was found, in one video or in a whole set.

    Attributes:
        counts: How many of what.
        faults: How many of each kind.
        first: The first messages of each kind.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)

    def fault(self, kind: str, message: object) -> None:
        """Count a fault, and keep it if it is one of the first."""
        self.faults[kind] += 1
        told = self.first.setdefault(kind, [])
        if len(told) < FEW:
            told.append(str(message))

    def add(self, other: Findings) -> None:
        """Take over what was found elsewhere."""
        self.counts += other.counts
        self.faults += other.faults
        for kind, messages in other.first.items():
            told = self.first.setdefault(kind, [])
            told += messages[: FEW - len(told)]

    @contextmanager
    def noting(self, usual: str) -> Iterator[None]:
        """Count a `DataError` within as a fault: of a kind that its words tell, or else the usual one."""
        try:
            yield
        except DataError as error:
            self.fault(_kind(str(error), usual), error)


def verify(
    found: Benchmark | TalkSet, faults: Sequence[DataError], quick: bool, progress: Progress
) -> tuple[Findings, dict[str, int]]:
    """Read everything that a set consists of.

    Args:
        found: The set, opened tolerantly.
        faults: What was left out when it was opened.
        quick: Look for every file, but decode no picture.
        progress: Told of every video or talk.

    Returns:
        What was found, and what is left out on purpose, by reason.
    """
    findings = Findings()
    for error in faults:
        findings.fault(_kind(str(error), ENTRIES), error)
    checker = _Checker(quick)
    work: Iterator[Callable[[], Findings]]
    if isinstance(found, Benchmark):
        total, left_out = len(found.videos), {}
        work = (partial(checker.video, found, video) for video in found.videos)
    else:
        total, left_out = len(found), found.dropped
        work = (partial(checker.talk, found, number) for number in range(total))
    progress.start(f"verify {found.name} {found.split}", total)
    threads = os.cpu_count() or 1
    for one in in_order(lambda check: check(), work, threads, ahead=4 * threads):
        findings.add(one)
        progress.advance(faults=findings.faults.total())
    progress.finish()
    return findings, left_out


class _Checker:
    """Checks videos and talks, several at once.

    Args:
        quick: As of `verify`.
    """

    def __init__(self, quick: bool) -> None:
        self._quick = quick
        self._sizes: dict[str, tuple[int, int] | None] = {}  # a picture may be shown in many talks
        self._lock = Lock()

    def video(self, benchmark: Benchmark, video: Video) -> Findings:
        """A video with its expressions, its frames and the masks of all that is annotated in it."""
        findings = Findings()
        findings.counts.update({"pictures" if benchmark.still else "videos": 1, "expressions": len(video.expressions)})
        size = None
        with findings.noting(PICTURES):
            frames = benchmark.frames(video)
            if not benchmark.still:
                findings.counts["frames"] += len(frames)
            size = self._frames(frames, findings)
        if size is not None and benchmark.public:
            for where, track, meant in _tracks(benchmark, video, findings):
                if _shows_nothing(track, video, size, where, findings) and meant:
                    place = "in a picture" if benchmark.still else "in any frame"
                    findings.fault(BLANK, f"{where}: {_marks_nothing(size, place)}")
        return findings

    def talk(self, talks: TalkSet, number: int) -> Findings:
        """A talk with its picture or video, and its masks."""
        findings = Findings(Counter(talks=1))
        size: tuple[int, int] | None = None
        keys: tuple[str, ...] = ()
        with findings.noting(ENTRIES):
            talk = talks.talk(number)
            findings.counts["rounds"] += len(talk.rounds)
            keys = talk.targets + talk.regions
        if findings.faults:
            return findings  # of a record that is broken no more is told
        with findings.noting(PICTURES):
            frames = talks.frames(number)
            if frames is not None:
                findings.counts["with a picture" if talks.still else "with a video"] += 1
                size = self._frames(frames, findings)
        if size is not None:
            for key in keys:
                findings.counts["masks"] += 1
                with findings.noting(MASKS):
                    if not rle.bits(talks.mask(number, key, size)).area():
                        findings.fault(BLANK, f"{talk.name}, mask {key}: {_marks_nothing(size, 'in a picture')}")
        return findings

    def _frames(self, frames: FrameSource, findings: Findings) -> tuple[int, int] | None:
        """Looks at all frames; gives their size, or None where it is not known."""
        missing = [file for file in frames.files if not file.is_file()]
        for file in missing:
            findings.fault(MISSING, f"frame {file} does not exist; copy it again")
        if frames.files and frames.files[0] in missing:
            return None
        shown = str(frames.files[0] if frames.files else frames.path)
        with self._lock:
            first = shown not in self._sizes
            if first:
                self._sizes[shown] = None  # and so it stays if the header cannot be read
                self._sizes[shown] = frames.size
        if first and not self._quick:
            _decode(frames, missing, findings)
        return self._sizes[shown]


def _decode(frames: FrameSource, missing: Sequence[Path], findings: Findings) -> None:
    if not frames.files:
        for _ in frames:
            pass
    for number, file in enumerate(frames.files):
        if file not in missing:
            with findings.noting(PICTURES):
                frames[number]


def _tracks(
    benchmark: Benchmark, video: Video, findings: Findings
) -> Iterator[tuple[str, Sequence[Mapping[str, Any] | None], bool]]:
    """All that is annotated in a video, each but once: its name, its masks, whether it must be seen somewhere."""
    where = f"{benchmark.truth_path(video)}, video {video.name}"
    seen: set[str] = set()
    meant = {key for one in video.expressions if one.kind != "no-target" for key in one.targets}
    for expression in {one.targets: one for one in video.expressions}.values():
        if seen.issuperset(expression.targets):
            continue
        with findings.noting(MASKS):
            for key, track in zip(expression.targets, benchmark.objects(video, expression) or (), strict=True):
                if key not in seen:
                    yield f"{where}, mask {key}", track, key in meant
        seen.update(expression.targets)
    with findings.noting(MASKS):
        for number, track in enumerate(benchmark.annotated(video) or ()):
            yield f"{benchmark.root}, video {video.name}, object {number} of the foreground", track, False


def _shows_nothing(
    track: Sequence[Mapping[str, Any] | None], video: Video, size: tuple[int, int], where: str, findings: Findings
) -> bool:
    """Checks masks; whether all are whole and empty. A broken one may have been where the object is to be seen."""
    if len(track) != len(video.frames):
        findings.fault(MASKS, f"{where}: {len(track)} masks for {len(video.frames)} frames; fetch the file again")
        return False
    areas = [
        0 if mask is None else _area(mask, size, f"{where}, frame {frame}", findings)
        for frame, mask in zip(video.frames, track, strict=True)
    ]
    return all(area == 0 for area in areas)


def _area(mask: Mapping[str, Any], size: tuple[int, int], where: str, findings: Findings) -> int | None:
    """The pixels of a mask; None where it is broken, which is counted."""
    findings.counts["masks"] += 1
    try:
        found = rle.size_of(mask)
        if found == size:
            return rle.bits(mask).area()
        findings.fault(SIZES, f"{where}: RLE is of size {found} where the frame is {size}")
    except DataError as error:
        findings.fault(MASKS, f"{where}: {error}")
    return None


def _marks_nothing(size: tuple[int, int], where: str) -> str:
    return f"it marks nothing {where} of {size[1]}x{size[0]}; draw it where the object is, or take the object out"


def _kind(message: str, usual: str) -> str:
    """The kind of a fault by the words in which readers tell it."""
    words = {
        NAMES: ("is not a plain name",),
        EMPTY: ("expression is empty", "text is empty", "caption is empty"),
        MISSING: ("does not exist", "is missing"),
        SIZES: ("is of size", "it is about a picture of size", ", the first is "),
    }
    return next((kind for kind, parts in words.items() if any(part in message for part in parts)), usual)
