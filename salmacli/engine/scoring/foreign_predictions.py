"""Predictions in the forms that other projects write: folders of binary PNGs, and Sa2VA's one JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from zipfile import is_zipfile

from salmacli.config.files import read_json, safe_name
from salmacli.data import rle
from salmacli.data.label_pictures import LabelError, folder_names, picture_names, read_labels
from salmacli.engine.scoring.predictions import PredictedVideo, Predictions, Said
from salmacli.engine.scoring.problems import ProblemError
from salmacli.errors import DataError
from salmacli.metrics.bits import Bits

if TYPE_CHECKING:
    from salmacli.data.records import Video

_MASKS = "prediction_masks"
_AGAIN = "write the file again, in the form {video: {expression: {prediction_masks: [RLE per frame]}}}"


@dataclass(frozen=True)
class PictureVideo(PredictedVideo):
    """One folder of PNGs per expression.

    A picture is of mode 1, L or P; every value that is not 0 is foreground, so 0/1, 0/255 and palettes are alike.
    """

    video: str
    path: Path
    by_columns: ClassVar[bool] = False

    def bits(self, expression: str, frame: str) -> Bits:
        """See ``PredictedVideo``."""
        where = f"{self.video}/{expression}"
        folder = self.path / safe_name(expression, "an expression's id")
        path = folder / f"{safe_name(frame, 'a frame name')}.png"
        try:
            mask = read_labels(path) != 0
        except LabelError as error:
            if not folder.is_dir():
                raise ProblemError("expression", where) from None
            detail = "" if error.kind == "frame" else str(error)
            raise ProblemError(error.kind, f"{where}/{frame}", detail) from None
        return Bits.of_mask(mask)

    def masks(self) -> Mapping[str, Sequence[str]]:
        """See ``PredictedVideo``."""
        return {name: picture_names(self.path / name) for name in folder_names(self.path)}


class PicturePredictions(Predictions):
    """``[Annotations/]<video>/<expression>/<frame>.png``, as benchmark servers want them.

    Raises:
        DataError: A video lies both in ``Annotations`` and beside it.
    """

    def __init__(self, path: Path) -> None:
        top = path / "Annotations"
        self.path = top if top.is_dir() else path
        twice = sorted(set(folder_names(path)) & set(folder_names(self.path))) if top.is_dir() else []
        if twice:
            raise DataError(f"{path} has {twice[0]} both in Annotations and beside it", "name the folder that is meant")
        self.record = {}

    def videos(self) -> set[str]:
        """See ``Predictions``."""
        return set(folder_names(self.path))

    def read(self, video: Video) -> PictureVideo | None:
        """See ``Predictions``."""
        folder = self.path / safe_name(video.name, "a video name")
        return PictureVideo(video.name, folder) if folder.is_dir() else None


@dataclass(frozen=True)
class _Expression:
    """What the file holds of one expression: its RLEs, and perhaps their frames' names and the model's answer."""

    rles: Sequence[Any]
    frames: Sequence[str] | None
    answer: str | None


@dataclass(frozen=True)
class JsonVideo(PredictedVideo):
    """One RLE per frame; of an expression that does not name its frames, in the order of the benchmark's.

    Attributes:
        video: See ``PredictedVideo``.
        path: See ``PredictedVideo``.
        positions: Of each named frame in the RLEs, by expression id.
        expressions: By expression id.
    """

    video: str
    path: Path
    positions: Mapping[str, Mapping[str, int]]
    expressions: Mapping[str, _Expression]

    def bits(self, expression: str, frame: str) -> Bits:
        """See ``PredictedVideo``."""
        where = f"{self.video}/{expression}"
        if expression not in self.expressions:
            raise ProblemError("expression", where)
        rles, position = self.expressions[expression].rles, self.positions[expression].get(frame)
        if position is None or position >= len(rles):
            raise ProblemError("frame", f"{where}/{frame}")
        try:
            return rle.bits(rles[position])
        except DataError as error:
            raise ProblemError("rle", f"{where}/{frame}", str(error)) from None

    def masks(self) -> Mapping[str, Sequence[str]]:
        """See ``PredictedVideo``; masks behind the last frame are named by their number."""
        return {key: self._names(key, len(one.rles)) for key, one in self.expressions.items()}

    def said(self, expression: str) -> Said:
        """See ``PredictedVideo``; the file has the sentence only inside a prompt."""
        return Said(answer=self.expressions[expression].answer) if expression in self.expressions else Said()

    def _names(self, expression: str, number: int) -> list[str]:
        names = list(self.positions[expression])[:number]
        return names + [f"#{n}" for n in range(len(names), number)]


class JsonPredictions(Predictions):
    """One file for all videos.

    Raises:
        DataError: The file is no JSON, or not of this form.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = {}
        if is_zipfile(path):
            raise DataError(f"{path} is an archive", "unpack it and name the folder")
        content = read_json(path, unique=True)
        if not isinstance(content, dict):
            raise DataError(f"{path} holds no object", _AGAIN)
        self._videos = {video: _expressions(path, video, value) for video, value in content.items()}

    def videos(self) -> set[str]:
        """See ``Predictions``."""
        return set(self._videos)

    def read(self, video: Video) -> JsonVideo | None:
        """See ``Predictions``."""
        if video.name not in self._videos:
            return None
        expressions = self._videos[video.name]
        usual = {frame: n for n, frame in enumerate(video.frames)}
        positions = {
            key: usual if one.frames is None else {frame: n for n, frame in enumerate(one.frames)}
            for key, one in expressions.items()
        }
        return JsonVideo(video.name, self.path, positions, expressions)


def _expressions(path: Path, video: str, value: Any) -> dict[str, _Expression]:
    if not isinstance(value, dict):
        raise DataError(f"{path}: video {video!r} is not an object of expressions", _AGAIN)
    return {key: _expression(f"{path}: video {video!r}, expression {key!r}", entry) for key, entry in value.items()}


def _expression(where: str, entry: Any) -> _Expression:
    if not isinstance(entry, dict) or not isinstance(entry.get(_MASKS), list):
        raise DataError(f"{where} has no list {_MASKS}", _AGAIN)
    rles, frames, answer = entry[_MASKS], entry.get("frames"), entry.get("text_prediction")
    if frames is not None:
        named = isinstance(frames, list) and all(isinstance(frame, str) for frame in frames)
        if not named or len(set(frames)) != len(frames) or len(frames) != len(rles):
            raise DataError(f"{where}: frames is not one name for each of the {len(rles)} masks", _AGAIN)
    return _Expression(rles, frames, answer if isinstance(answer, str) else None)
