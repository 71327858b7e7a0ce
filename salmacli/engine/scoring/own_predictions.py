"""Predictions as the predictor leaves them: ``<video>.json``, perhaps ``<video>.npz``, and ``prediction.json``."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from salmacli.config.files import safe_name
from salmacli.data import rle
from salmacli.engine.scoring.predictions import RECORD, PredictedVideo, Predictions, Said, read_object
from salmacli.engine.scoring.problems import ProblemError
from salmacli.errors import DataError
from salmacli.metrics.bits import Bits

if TYPE_CHECKING:
    from salmacli.data.records import Video

SCHEMA = 1
_AGAIN = "predict this video again: remove the file and run `salma eval`"


@dataclass(frozen=True)
class OwnVideo(PredictedVideo):
    """All predictions of one video.

    Attributes:
        video: See ``PredictedVideo``.
        path: See ``PredictedVideo``.
        size: (height, width) of the masks.
        frames: Position of each frame name in the masks.
        counts: COCO counts by expression id, one per frame.
        about: What is said beside them.
    """

    video: str
    path: Path
    size: tuple[int, int]
    frames: Mapping[str, int]
    counts: Mapping[str, Sequence[Any]]
    about: Mapping[str, Said]

    def bits(self, expression: str, frame: str) -> Bits:
        """See ``PredictedVideo``."""
        where = f"{self.video}/{expression}"
        if expression not in self.counts:
            raise ProblemError("expression", where)
        if frame not in self.frames:
            raise ProblemError("frame", f"{where}/{frame}")
        try:
            return rle.bits({"size": list(self.size), "counts": self.counts[expression][self.frames[frame]]})
        except DataError as error:
            raise ProblemError("rle", f"{where}/{frame}", str(error)) from None

    def masks(self) -> Mapping[str, Sequence[str]]:
        """See ``PredictedVideo``."""
        return dict.fromkeys(self.counts, tuple(self.frames))

    def said(self, expression: str) -> Said:
        """See ``PredictedVideo``."""
        return self.about.get(expression, Said())


class OwnPredictions(Predictions):
    """A folder the predictor wrote.

    Raises:
        DataError: The folder is missing, or its ``prediction.json`` is broken.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise DataError(f"{path} is not a folder of predictions", "make them: salma eval")
        self.path = path
        self.record = _object(path / RECORD) if (path / RECORD).exists() else {}

    def videos(self) -> set[str]:
        """See ``Predictions``."""
        return {path.stem for path in self.path.glob("*.json") if path.name != RECORD}

    def read(self, video: Video) -> OwnVideo | None:
        """See ``Predictions``."""
        path = self._file(video.name, "json")
        return _video(path, video.name) if path.exists() else None

    def logits(self, video: str) -> dict[str, NDArray[np.float32]] | None:
        """Saved mask logits, (T, h, w) by expression id; None where the video has none.

        Raises:
            DataError: The file is broken or holds something else.
        """
        path = self._file(video, "npz")
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read: {error}", _AGAIN) from None
        for key, array in arrays.items():
            if array.ndim != 3 or not np.issubdtype(array.dtype, np.floating) or np.isnan(array).any():
                raise DataError(f"{path}: {key!r} is not (frames, height, width) logits without NaN", _AGAIN)
        return arrays

    def _file(self, video: str, suffix: str) -> Path:
        return self.path / f"{safe_name(video, 'a video name')}.{suffix}"


def _object(path: Path) -> dict[str, Any]:
    mend = _AGAIN if path.name != RECORD else "remove the file and run `salma eval`, which makes all predictions anew"
    content = read_object(path, mend)
    if content.get("schema") != SCHEMA:
        raise DataError(f"{path} has schema {content.get('schema')!r}, this version reads {SCHEMA}", mend)
    return content


def _video(path: Path, video: str) -> OwnVideo:
    content = _object(path)
    size, frames, expressions = (content.get(key) for key in ("size", "frames", "expressions"))
    if content.get("video") != video:
        raise DataError(f"{path} is of video {content.get('video')!r}", _AGAIN)
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise DataError(f"{path}: size {size!r} is not [height, width]", _AGAIN)
    if not (isinstance(frames, list) and all(isinstance(frame, str) for frame in frames)):
        raise DataError(f"{path}: frames is not a list of names", _AGAIN)
    if len(set(frames)) != len(frames):
        raise DataError(f"{path}: a frame is named twice", _AGAIN)
    if not isinstance(expressions, dict):
        raise DataError(f"{path}: expressions is not an object", _AGAIN)
    return OwnVideo(
        video=video,
        path=path,
        size=(size[0], size[1]),
        frames={frame: position for position, frame in enumerate(frames)},
        counts={key: _counts(path, key, value, len(frames)) for key, value in expressions.items()},
        about={key: _said(path, key, value) for key, value in expressions.items()},
    )


def _counts(path: Path, key: str, value: Any, frames: int) -> list[Any]:
    masks = value.get("masks") if isinstance(value, dict) else None
    if not isinstance(masks, list) or len(masks) != frames:
        raise DataError(f"{path}: expression {key!r} has not one mask for each of the {frames} frames", _AGAIN)
    return masks


def _said(path: Path, key: str, value: dict[str, Any]) -> Said:
    for name in ("text", "answer", "fallback"):
        if value.get(name) is not None and not isinstance(value[name], str):
            raise DataError(f"{path}: expression {key!r} has the {name} {value[name]!r}", _AGAIN)
    for name in ("empty_frames", "filled_frames"):
        number = value.get(name)
        if number is not None and (type(number) is not int or number < 0):
            raise DataError(f"{path}: expression {key!r} has the {name} {number!r}", _AGAIN)
    return Said(*(value.get(name) for name in ("text", "answer", "fallback", "empty_frames", "filled_frames")))
