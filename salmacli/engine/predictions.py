"""Predictions on disk as the predictor leaves them: behind this border nothing needs torch or a GPU."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salmacli.config.files import read_json, safe_name
from salmacli.data.rle import decode
from salmacli.errors import DataError

SCHEMA = 1
RECORD = "prediction.json"
_AGAIN = "predict this video again: remove the file and run `salma eval`"


@dataclass(frozen=True)
class PredictedExpression:
    """What was predicted for one expression.

    Attributes:
        text: The sentence that was asked.
        answer: What the model said.
        fallback: Why the masks are not the model's own choice: None, "no-seg" or "empty".
        masks: COCO counts, one per frame of the video's ``frames``.
    """

    text: str | None
    answer: str
    fallback: str | None
    masks: tuple[Any, ...]


@dataclass(frozen=True)
class PredictedVideo:
    """All predictions of one video.

    Attributes:
        path: The file they come from.
        size: (height, width) of the masks.
        frames: Position of each frame name in the masks.
        expressions: By expression id.
    """

    path: Path
    size: tuple[int, int]
    frames: Mapping[str, int]
    expressions: Mapping[str, PredictedExpression]

    def mask(self, expression: str, frame: str) -> NDArray[np.bool_]:
        """(H, W) booleans.

        Raises:
            DataError: The expression or frame is missing, or its runs do not fill the frame.
        """
        where = f"{self.path.name}: expression {expression!r}"
        if expression not in self.expressions:
            raise DataError(f"{where} is missing")
        if frame not in self.frames:
            raise DataError(f"{where}, frame {frame!r} is missing")
        counts = self.expressions[expression].masks[self.frames[frame]]
        try:
            return decode({"size": list(self.size), "counts": counts})
        except DataError as error:
            raise DataError(f"{where}, frame {frame!r}: {error}") from None


class Predictions:
    """A predictions folder.

    Args:
        folder: Holds one ``<video>.json`` per video, perhaps ``<video>.npz`` and ``prediction.json``.

    Raises:
        DataError: The folder is missing, or its ``prediction.json`` is broken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder of predictions", "make them: salma eval")
        self.record: dict[str, Any] = {}
        if (folder / RECORD).exists():
            self.record = _object(folder / RECORD)

    def videos(self) -> set[str]:
        """Names of the videos that have a file."""
        return {path.stem for path in self.folder.glob("*.json") if path.name != RECORD}

    def read(self, video: str) -> PredictedVideo | None:
        """The predictions of one video; None where it has no file.

        Raises:
            DataError: The file is broken or contradicts itself.
        """
        path = self.folder / f"{safe_name(video, 'a video name')}.json"
        return _video(path, video) if path.exists() else None

    def logits(self, video: str) -> dict[str, NDArray[np.float32]] | None:
        """Saved mask logits, (T, h, w) by expression id; None where the video has none.

        Raises:
            DataError: The file is broken or holds something else.
        """
        path = self.folder / f"{safe_name(video, 'a video name')}.npz"
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


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no object", _AGAIN)
    if content.get("schema") != SCHEMA:
        raise DataError(f"{path} has schema {content.get('schema')!r}, this version reads {SCHEMA}", _AGAIN)
    return content


def _video(path: Path, video: str) -> PredictedVideo:
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
    return PredictedVideo(
        path=path,
        size=(size[0], size[1]),
        frames={frame: position for position, frame in enumerate(frames)},
        expressions={key: _expression(path, key, value, len(frames)) for key, value in expressions.items()},
    )


def _expression(path: Path, key: str, value: Any, frames: int) -> PredictedExpression:
    masks = value.get("masks") if isinstance(value, dict) else None
    if not isinstance(masks, list) or len(masks) != frames:
        raise DataError(f"{path}: expression {key!r} has not one mask for each of the {frames} frames", _AGAIN)
    fallback = value.get("fallback")
    if fallback is not None and not isinstance(fallback, str):
        raise DataError(f"{path}: expression {key!r} has the fallback {fallback!r}", _AGAIN)
    return PredictedExpression(value.get("text"), str(value.get("answer", "")), fallback, tuple(masks))
