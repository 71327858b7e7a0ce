"""Ref-SAV: long descriptions of objects in the videos of SA-V, whose masks are of every fourth frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from salmacli.config.files import read_json, safe_name
from salmacli.data.benchmarks import Benchmark, Track
from salmacli.data.frames import Frame, FrameSource
from salmacli.data.readers import checks
from salmacli.data.readers.talk_files import file_below
from salmacli.data.records import Expression, Video
from salmacli.errors import DataError

if TYPE_CHECKING:
    from salmacli.data.video_file import VideoFile

STEP = 4  # SA-V is annotated at 6 of 24 frames per second
_FILES = ("Ref-SAV.json", "sam_v_final_v3.json", "sam_v_full/Ref-SAV.json", "sav_train/Ref-SAV.json")
_MEND = "download SA-V, which Ref-SAV does not bring, into sam_v_full"


class AnnotatedFrames(Sequence[str]):
    """Names of the annotated frames of a video. How many there are its annotation says, read when they are counted."""

    def __init__(self, annotations: _Annotations, stated: str) -> None:
        self._annotations, self._stated = annotations, stated
        self._count: int | None = None

    def __len__(self) -> int:
        if self._count is None:
            self._count = len(self._annotations.read(self._stated))
        return self._count

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[str, ...]: ...

    def __getitem__(self, at: int | slice) -> str | tuple[str, ...]:
        if isinstance(at, slice):
            return tuple(self[number] for number in range(len(self))[at])
        return f"{STEP * range(len(self))[at]:05d}"

    def __repr__(self) -> str:
        return f"every {STEP}th frame, as {self._stated} says"


class RefSav(Benchmark):
    """``Ref-SAV.json`` over the ``.mp4`` of SA-V and, beside each, ``_manual.json`` or ``_auto.json``.

    ``{video: {"video_path", "anno_path", "objects": {number: {"formated", "short_caps"}}}}``; in an annotation,
    ``masklet[t]`` is a list of RLEs, one per object, of frame 4·t. Only these frames are the video's here.
    Source: ``ReSAM2_Dataset.py`` of Sa2VA, ``sav_dataset`` of SAM 2.
    """

    def __init__(
        self, path: Path, annotations: _Annotations, videos: Sequence[Video], stated: dict[str, tuple[str, str]]
    ) -> None:
        super().__init__("refsav", annotations.root, "train", videos, path)
        self._annotations, self._stated = annotations, stated
        self._last: tuple[str, FrameSource] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def frames(self, video: Video) -> FrameSource:
        """See ``Benchmark``; the last video stays open, since its size and its frames are asked for."""
        last = self._last
        if last is None or last[0] != video.name:
            from salmacli.data.video_file import VideoFile  # PyAV is slow to import

            file = _below(self.root, self._stated[video.name][0])
            last = self._last = (video.name, _EveryFourth(VideoFile(file, whole=False), len(video.frames)))
        return last[1]

    def size(self, video: Video) -> tuple[int, int]:
        """See ``Benchmark``."""
        if video.name not in self._sizes:
            self._sizes[video.name] = self.frames(video).size
        return self._sizes[video.name]

    def truth_path(self, video: Video) -> str:
        """See ``Benchmark``."""
        return self._stated[video.name][1]

    def objects(self, video: Video, expression: Expression) -> list[Track] | None:
        """See ``Benchmark``."""
        (key,) = expression.targets
        return [self._track(video, int(key))]

    def annotated(self, video: Video) -> list[Track] | None:
        """See ``Benchmark``."""
        return [self._track(video, number) for number in range(len(self._masklets(video)[0]))]

    def _masklets(self, video: Video) -> list[list[Any]]:
        return self._annotations.read(self._stated[video.name][1])

    def _track(self, video: Video, number: int) -> Track:
        track = []
        for frame, found in zip(video.frames, self._masklets(video), strict=True):
            if number >= len(found):
                where = f"{self.truth_path(video)}, frame {frame}"
                raise DataError(f"{where}: {len(found)} masks, none of object {number}", checks.MEND)
            track.append(found[number])
        return track


class _Annotations:
    """Masks by file. The last one read is kept: all expressions of a video ask for the same."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._last: tuple[str, list[list[Any]]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def read(self, stated: str) -> list[list[Any]]:
        """(frames, objects) RLEs, not yet checked.

        Raises:
            DataError: The file is missing or none of SA-V's.
        """
        last = self._last
        if last is None or last[0] != stated:
            path = _below(self.root, stated)
            masklets = checks.listing(checks.mapping(read_json(path), str(path)).get("masklet"), f"{path}, key masklet")
            if not masklets:
                raise DataError(f"{path}, key masklet: no frame is annotated", checks.MEND)
            for number, found in enumerate(masklets):
                checks.listing(found, f"{path}, key masklet, frame {STEP * number:05d}")
            last = self._last = (stated, masklets)
        return last[1]


class _EveryFourth(FrameSource):
    """The annotated frames of a video file."""

    def __init__(self, whole: VideoFile, count: int) -> None:
        numbers = range(0, STEP * count, STEP)
        if numbers[-1] >= len(whole):
            raise DataError(
                f"video {whole.path} has {len(whole)} frames, but frame {numbers[-1]} is annotated",
                "fetch video and annotation again",
            )
        super().__init__(whole.path, [whole.names[number] for number in numbers])
        self._whole, self._numbers = whole, numbers
        self._size, self.fps = whole.size, whole.fps and whole.fps / STEP

    def _load(self, number: int) -> Frame:
        return self._whole[self._numbers[number]]

    def _stream(self, numbers: Sequence[int], then: Any, threads: int, ahead: int) -> Any:
        return self._whole.read([self._numbers[number] for number in numbers], then, threads, ahead)


def open_refsav(root: Path, split: str) -> Benchmark:
    """``Ref-SAV.json`` beside ``sam_v_full``, or within it, and the videos as Meta's archives unpack."""
    checks.split_of(split, ("train",), "refsav")
    path = checks.first_of(root, _FILES, "refsav")
    annotations = _Annotations(root)
    videos, stated = [], {}
    for key, value in checks.mapping(read_json(path), str(path)).items():
        where = f"{path}, video {key}"
        with checks.part():
            entry = checks.mapping(value, where)
            film, masks = (_named(entry, name, where) for name in ("video_path", "anno_path"))
            name = safe_name(key.replace("/", "-"), where)
            found = checks.mapping(entry.get("objects"), f"{where}, key objects")
            expressions = []
            for number, described in found.items():
                with checks.part():
                    expressions.append(_expression(number, described, f"{where}, object {number}"))
            videos.append(Video(name, AnnotatedFrames(annotations, masks), tuple(expressions)))
            stated[name] = (film, masks)
    if not videos:
        raise DataError(f"{path} lists no videos", checks.MEND)
    return RefSav(path, annotations, videos, stated)


def _expression(number: str, value: Any, where: str) -> Expression:
    text = checks.sentence(checks.mapping(value, where).get("formated"), f"{where}, key formated")
    return Expression(number, text, (str(checks.number(number, where)),), tags={"description": True})


def _named(entry: dict[str, Any], key: str, where: str) -> str:
    file_below(Path(), entry.get(key), f"{where}, key {key}")
    return str(entry[key])


def _below(root: Path, stated: str) -> Path:
    """Where a file lies that ``Ref-SAV.json`` names ``sav_000/sav_train/sav_000/sav_000002.mp4``.

    Meta's archives unpack to ``sav_train/sav_000/…``; the first folder is left over from unpacking each on its own.
    Source: ``sam2_path_patch`` of Sa2VA.
    """
    steps = stated.removeprefix("./").split("/")
    tails = {"/".join(steps), "/".join(["sav_train", *steps[-2:]]), "/".join(steps[-2:])}
    for base in (root / "sam_v_full", root / "sav_train", root):
        for tail in sorted(tails, key=len, reverse=True):
            if (base / tail).is_file():
                return base / tail
    raise DataError(f"refsav: {stated} is missing below {root}, and so is sav_train/{'/'.join(steps[-2:])}", _MEND)
