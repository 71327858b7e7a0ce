"""Ref-DAVIS17: four annotators per object, masks as one pickle or as official PNGs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salmacli.data import rle
from salmacli.data.benchmarks import Benchmark, Track
from salmacli.data.label_pictures import VOID, Labels, read_labels
from salmacli.data.readers import checks
from salmacli.data.readers.frame_folders import FrameFolders
from salmacli.data.records import Expression, Video
from salmacli.errors import DataError
from salmacli.metrics.bits import Bits

ANNOTATORS = 4


class NumberedSet(FrameFolders):
    """A set whose pickle counts expressions through all videos, and whose PNGs count objects within one.

    Attributes:
        labels_root: Holds ``<video>/<frame>.png``; None where there are no PNGs. They are the truth where there is
            no pickle.
    """

    labels_root: Path | None

    def __init__(
        self,
        name: str,
        root: Path,
        split: str,
        videos: Sequence[Video],
        frames_root: Path,
        masks_path: Path | None,
        labels_root: Path | None = None,
    ) -> None:
        super().__init__(name, root, split, videos, frames_root, masks_path)
        self.labels_root = labels_root
        self._kept = _Kept()

    def labels_path(self, video: Video, frame: str) -> Path | None:
        """The official PNG of a frame, with object numbers and 255 for void; None where the set has no PNGs."""
        return None if self.labels_root is None else self.labels_root / video.name / f"{frame}.png"

    def objects(self, video: Video, expression: Expression) -> list[Track] | None:
        """See ``Benchmark``."""
        if not self._by_labels:
            return super().objects(video, expression)
        frames = self._labels(video)
        return [[rle.encode(labels == int(number)) for labels in frames] for number in expression.targets]

    def truth_bits(self, video: Video, expression: Expression) -> list[Bits] | None:
        """See ``Benchmark``; straight from the PNGs where these are the truth."""
        if not self._by_labels:
            return super().truth_bits(video, expression)
        (number,) = expression.targets
        return [Bits.of_label(labels, int(number)) for labels in self._labels(video)]

    @property
    def _by_labels(self) -> bool:
        return self.masks_path is not None and self.masks_path == self.labels_root

    def _labels(self, video: Video) -> tuple[Labels, ...]:
        """The label pictures of a video, which all of its expressions ask for one after the other."""
        if self._kept.video != video.name:
            size = self.size(video)
            frames = []
            for frame in video.frames:
                path = self.labels_path(video, frame)
                assert path is not None
                labels = read_labels(path)
                if labels.shape != size:
                    raise DataError(
                        f"label picture {path} is of size {labels.shape} where the frames are {size}",
                        "fetch frames and annotations of one resolution",
                    )
                frames.append(labels)
            self._kept.video, self._kept.frames = video.name, tuple(frames)
        return self._kept.frames


class _Kept(threading.local):
    """The last video's label pictures. Every thread has its own, since each works on another video."""

    video: str | None = None
    frames: tuple[Labels, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        # What is kept stays behind when the set goes to another process.
        return _Kept, ()


def open_davis(root: Path, split: str) -> Benchmark:
    """Opens Ref-DAVIS17.

    It has ``meta_expressions/valid/meta_expressions.json``, ``valid/JPEGImages`` and ``valid/mask_dict.pkl``
    or an ``Annotations`` folder.
    """
    checks.split_of(split, ("valid",), "davis")
    meta = checks.first_of(root, ("meta_expressions/valid/meta_expressions.json",), "davis")
    frames = checks.first_of(root, ("valid/JPEGImages", "DAVIS/JPEGImages/480p", "DAVIS/JPEGImages"), "davis")
    places = (
        "valid/Annotations",
        "DAVIS/Annotations_unsupervised/480p",
        "DAVIS/Annotations/480p",
        "DAVIS/Annotations",
        "Annotations",
    )
    masks = checks.first_of(root, ("valid/mask_dict.pkl", *places), "davis")
    labels = next((root / place for place in places if (root / place).is_dir()), None)
    # The pickle's counter runs over sorted videos and, within one, over ids sorted as strings.
    videos = numbered_videos(dict(sorted(checks.read_videos(meta).items())), meta, masks.is_dir())
    return NumberedSet("davis", root, split, videos, frames, masks, labels)


def numbered_videos(videos: dict[str, Any], path: Path, by_object: bool) -> list[Video]:
    """Records of videos whose expressions are counted in the order given.

    Args:
        videos: As in the file.
        path: The file, for messages.
        by_object: Whether targets are object numbers within the video instead of the counter.
    """
    records = []
    count = 0
    for name, value in videos.items():
        where = f"{path}, video {name}"
        # Also what is broken has its number.
        first, count = count, count + len(_listed(value))
        with checks.part():
            video = checks.named_video(name, value, path)
            found = checks.expressions(video, where)
            sentences = []
            for number, key in enumerate(sorted(_listed(value)), first):
                if key not in found:
                    continue
                place = f"{where}, expression {key}"
                with checks.part():
                    target = _object_number(key, found[key], place) if by_object else number
                    text = checks.sentence(found[key]["exp"], place)
                    sentences.append(Expression(key, text, (str(target),), tags=checks.tags(found[key])))
            records.append(Video(name, checks.frame_names(video, where), tuple(sentences)))
    return records


def _listed(video: Any) -> dict[str, Any]:
    expressions = video.get("expressions") if isinstance(video, dict) else None
    return expressions if isinstance(expressions, dict) else {}


def _object_number(key: str, entry: dict[str, Any], where: str) -> int:
    if "obj_id" in entry:
        number = checks.number(entry["obj_id"], f"{where}, key obj_id")
    else:
        number = checks.number(key, where) // ANNOTATORS + 1
    if not 0 < number < VOID:
        raise DataError(f"{where}: PNGs number objects from 1 to {VOID - 1}, not {number}", checks.MEND)
    return number
