"""Ref-DAVIS17: four annotators per object, masks as one pickle or as official PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salmacli.data import rle
from salmacli.data.benchmarks import Benchmark
from salmacli.data.readers import checks
from salmacli.data.readers.object_planes import read_plane
from salmacli.data.readers.plain_pickle import read_pickle
from salmacli.data.records import Expression, Video
from salmacli.errors import DataError

ANNOTATORS = 4


class NumberedSet(Benchmark):
    """A set whose pickle counts expressions through all videos, and whose PNGs count objects within one.

    Attributes:
        frames_root: Holds ``<video>/<frame>.jpg``.
        masks_path: The pickle, or the folder with ``<video>/<frame>.png``; None without public truth.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        split: str,
        videos: Sequence[Video],
        frames_root: Path,
        masks_path: Path | None,
    ) -> None:
        super().__init__(name, root, split, videos)
        self.frames_root = frames_root
        self.masks_path = masks_path
        self._masks: dict[str, Any] | None = None

    def frame_path(self, video: Video, frame: str) -> Path:
        """See ``Benchmark``."""
        return self.frames_root / video.name / f"{frame}.jpg"

    def truth(self, video: Video, expression: Expression) -> list[rle.RLE] | None:
        """See ``Benchmark``."""
        if self.masks_path is None:
            return None
        if self.masks_path.is_dir():
            return self.unite(video, [self._track_of_planes(video, expression)], str(self.masks_path))
        if self._masks is None:
            loaded = checks.mapping(read_pickle(self.masks_path), str(self.masks_path))
            self._masks = {str(key): track for key, track in loaded.items()}
        where = f"{self.masks_path}, video {video.name}, expression {expression.id}"
        return self.unite(video, [checks.track(self._masks, expression.targets[0], where)], str(self.masks_path))

    def _track_of_planes(self, video: Video, expression: Expression) -> list[rle.RLE]:
        assert self.masks_path is not None
        folder = self.masks_path / video.name
        target = int(expression.targets[0])
        return [rle.encode(read_plane(folder / f"{frame}.png") == target) for frame in video.frames]


def open_davis(root: Path, split: str) -> Benchmark:
    """Opens Ref-DAVIS17.

    It has ``meta_expressions/valid/meta_expressions.json``, ``valid/JPEGImages`` and ``valid/mask_dict.pkl``
    or an ``Annotations`` folder.
    """
    checks.split_of(split, ("valid",), "davis")
    meta = first_of(root, ("meta_expressions/valid/meta_expressions.json",), "davis")
    frames = first_of(root, ("valid/JPEGImages", "DAVIS/JPEGImages/480p", "DAVIS/JPEGImages"), "davis")
    places = (
        "valid/mask_dict.pkl",
        "valid/Annotations",
        "DAVIS/Annotations_unsupervised/480p",
        "DAVIS/Annotations/480p",
        "DAVIS/Annotations",
        "Annotations",
    )
    masks = first_of(root, places, "davis")
    # The pickle's counter runs over sorted videos and, within one, over ids sorted as strings.
    videos = numbered_videos(dict(sorted(checks.read_videos(meta).items())), meta, masks.is_dir())
    return NumberedSet("davis", root, split, videos, frames, masks)


def first_of(root: Path, places: Sequence[str], name: str) -> Path:
    """The first of some places in which sets keep a thing.

    Raises:
        DataError: Nothing is at any of them.
    """
    for place in places:
        if (root / place).exists():
            return root / place
    raise DataError(
        f"{name}: {root} has none of {', '.join(places)}", "give the folder of the set in its official layout"
    )


def numbered_videos(videos: dict[str, Any], path: Path, by_object: bool) -> list[Video]:
    """Records of videos whose expressions are counted in the order given.

    Args:
        videos: As in the file.
        path: The file, for messages.
        by_object: Whether targets are object numbers within the video instead of the counter.
    """
    records = []
    count = 0
    for name, video in videos.items():
        where = f"{path}, video {name}"
        found = checks.expressions(video, where)
        sentences = []
        for key in sorted(found):
            place = f"{where}, expression {key}"
            target = _object_number(key, found[key], place) if by_object else count
            text = checks.sentence(found[key]["exp"], place)
            sentences.append(Expression(key, text, (str(target),), tags=checks.tags(found[key])))
            count += 1
        records.append(Video(name, checks.frame_names(video, where), tuple(sentences)))
    return records


def _object_number(key: str, entry: dict[str, Any], where: str) -> int:
    if "obj_id" in entry:
        return checks.number(entry["obj_id"], f"{where}, key obj_id")
    return checks.number(key, where) // ANNOTATORS + 1
