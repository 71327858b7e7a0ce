"""Predictions on disk, of whatever origin: behind this border nothing needs torch or a GPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from salmacli.config.files import read_json
from salmacli.data.label_pictures import folder_names
from salmacli.engine.scoring.problems import ProblemError
from salmacli.errors import DataError
from salmacli.metrics.bits import Bits

if TYPE_CHECKING:
    from salmacli.data.records import Video

RECORD = "prediction.json"


def read_object(path: Path, mend: str) -> dict[str, Any]:
    """A JSON file that the predictor wrote.

    Raises:
        DataError: It cannot be read or holds no object; it ends with `mend`.
    """
    try:
        content = read_json(path, unique=True)
    except DataError as error:
        raise DataError(str(error).rpartition("; ")[0], mend) from None  # only the predictor makes it again
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no object", mend)
    return content


@dataclass(frozen=True)
class Said:
    """What predictions tell of one expression beside its masks.

    Attributes:
        text: The sentence that was asked.
        answer: What the model said.
        fallback: Why a fall-back was due: None, "no-seg", "several-seg" or "empty".
        empty: Frames whose mask the model left empty; None where nobody counted them.
        filled: Those of them that a fall-back filled; likewise.
    """

    text: str | None = None
    answer: str | None = None
    fallback: str | None = None
    empty: int | None = None
    filled: int | None = None


class PredictedVideo(ABC):
    """All predictions of one video.

    Attributes:
        video: Name of the video.
        path: The file or folder they come from.
        by_columns: The order of the masks, see ``Bits``.
    """

    video: str
    path: Path
    by_columns: ClassVar[bool] = True

    @abstractmethod
    def bits(self, expression: str, frame: str) -> Bits:
        """One mask.

        Raises:
            ProblemError: It is missing, cannot be read or does not fit.
        """

    @abstractmethod
    def masks(self) -> Mapping[str, Sequence[str]]:
        """The frames that are there, by expression id."""

    def said(self, expression: str) -> Said:
        """What is told of an expression, nothing where the form of the predictions has no place for it."""
        return Said()


def fitting_bits(
    predicted: PredictedVideo | None, video: str, expression: str, frame: str, size: tuple[int, int], of: str = "truth"
) -> Bits:
    """One predicted mask, of the size that is asked for.

    Args:
        predicted: The video's predictions; None where it has none.
        video: Its name.
        expression: Its id.
        frame: Its name.
        size: (height, width) wanted.
        of: What has that size, for messages.

    Raises:
        ProblemError: It is missing or does not fit.
    """
    if predicted is None:
        raise ProblemError("video", video)
    bits = predicted.bits(expression, frame)
    if bits.shape != size:
        detail = f"it is of size {bits.shape} where the {of} is {size}"
        raise ProblemError("size", f"{video}/{expression}/{frame}", detail)
    return bits


class Predictions(ABC):
    """A set of predictions.

    Attributes:
        path: Its folder or file.
        record: What it says of its origin, such as ``benchmark``, ``split``, ``mode`` and ``checkpoint``.
    """

    path: Path
    record: Mapping[str, Any]

    @abstractmethod
    def videos(self) -> set[str]:
        """Names of the videos that have predictions."""

    @abstractmethod
    def read(self, video: Video) -> PredictedVideo | None:
        """The predictions of one video; None where it has none.

        Raises:
            DataError: They are broken as a whole, or the video's name leads out of the folder.
        """


def open_predictions(path: Path) -> Predictions:
    """Open predictions in one of three forms.

    - SALMA's folder: ``prediction.json`` and ``<video>.json`` with COCO counts. A folder with neither that file nor
      folders in it is taken for one, too.
    - Binary PNGs, perhaps with ``Annotations`` on top: ``<video>/<expression>/<frame>.png``.
    - A JSON file as Sa2VA writes it: ``{video: {expression: {"prediction_masks": [RLE per frame]}}}``.

    Raises:
        DataError: There is nothing at the path, or what is there is broken as a whole.
    """
    # Imported here since the forms build on the classes above.
    from salmacli.engine.scoring.foreign_predictions import JsonPredictions, PicturePredictions
    from salmacli.engine.scoring.own_predictions import OwnPredictions

    if path.is_file():
        return JsonPredictions(path)
    if not path.is_dir():
        raise DataError(f"{path} is neither a folder nor a file of predictions", "make them: salma eval")
    if not (path / RECORD).is_file() and folder_names(path):
        return PicturePredictions(path)
    return OwnPredictions(path)
