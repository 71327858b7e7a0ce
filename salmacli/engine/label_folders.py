"""Scores of plain folders of label pictures ``<sequence>/<frame>.png``, object by object.

This is DAVIS's semi-supervised scoring: identities are given, void is not masked, and the first frame (given
to the method) and the last are not scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from salmacli.engine.progress import Progress
from salmacli.engine.threads import in_threads
from salmacli.errors import DataError
from salmacli.metrics.contour import contour_accuracy
from salmacli.metrics.counts import count_frames
from salmacli.metrics.region import region_similarity
from salmacli.metrics.statistics import summarise

VOID = 255
Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class LabelScores:
    """Scores of label folders.

    Attributes:
        rows: Per object: sequence, object, frames and J, F, JF, J_recall, J_decay, F_recall, F_decay.
        scores: The same measures, meaned over all objects.
        extra: Predicted sequences and frames that the truth does not have.
    """

    rows: list[dict[str, Any]]
    scores: dict[str, float]
    extra: int


def score_label_folders(
    truth_dir: Path,
    prediction_dir: Path,
    objects: Sequence[int] | None = None,
    skip_ends: bool = True,
    progress: Progress | None = None,
) -> LabelScores:
    """Score label pictures against label pictures.

    Args:
        truth_dir: One folder of indexed or grey PNGs per sequence.
        prediction_dir: The same sequences, frames and sizes.
        objects: Labels to score in every sequence; by default 1 to the highest label of a sequence's first
            true frame, as the official tool does.
        skip_ends: Leave out each sequence's first and last frame.
        progress: Told of every sequence.

    Raises:
        DataError: A folder, sequence or frame is missing, unreadable or of another size.

    Source: davis2017-evaluation, task semi-supervised.
    """
    sequences = _sequences(truth_dir)
    extra = len(set(_folders(prediction_dir)) - set(sequences))
    scored = in_threads(
        lambda name: _score(truth_dir / name, prediction_dir / name, objects, skip_ends),
        sequences,
        "scoring label pictures",
        progress,
    )
    rows = [row for found, _ in scored for row in found]
    extra += sum(unknown for _, unknown in scored)
    measures = [key for key in rows[0] if key not in ("sequence", "object", "frames")]
    return LabelScores(rows, {key: float(np.mean([row[key] for row in rows])) for key in measures}, extra)


def read_labels(path: Path) -> Labels:
    """One label picture, (H, W) uint8; palettes are ignored, labels are what is stored.

    Raises:
        DataError: It is missing, broken or in colour.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("P", "L", "1"):
                raise DataError(f"{path} is a picture of mode {picture.mode}, not of labels", "save it indexed or grey")
            return np.array(picture, dtype=np.uint8)
    except FileNotFoundError:
        raise DataError(f"{path} is missing", "every frame of the truth needs a prediction") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}", "write it again") from None


def _score(
    truth_dir: Path, prediction_dir: Path, objects: Sequence[int] | None, skip_ends: bool
) -> tuple[list[dict[str, Any]], int]:
    """Rows of one sequence and the number of frames only the prediction has."""
    frames = _pictures(truth_dir)
    unknown = len(set(_pictures(prediction_dir)) - set(frames))
    if objects is None:
        first = read_labels(truth_dir / frames[0])
        objects = range(1, int(np.where(first == VOID, 0, first).max()) + 1)
        if not objects:
            raise DataError(f"{truth_dir / frames[0]} has no object", "name the labels to score")
    scored = frames[1:-1] if skip_ends else frames
    if not scored:
        raise DataError(f"{truth_dir} has {len(frames)} frames, none beside the first and last", "score all frames")
    counts = np.stack([_count_objects(truth_dir / name, prediction_dir / name, objects) for name in scored], axis=1)
    rows = []
    for label, of_object in zip(objects, counts, strict=True):
        J, F = summarise(region_similarity(of_object)), summarise(contour_accuracy(of_object))
        rows.append(
            {
                "sequence": truth_dir.name,
                "object": int(label),
                "frames": len(scored),
                "J": J.mean,
                "F": F.mean,
                "JF": (J.mean + F.mean) / 2,
                "J_recall": J.recall,
                "J_decay": J.decay,
                "F_recall": F.recall,
                "F_decay": F.decay,
            }
        )
    return rows, unknown


def _count_objects(truth_path: Path, prediction_path: Path, objects: Sequence[int]) -> NDArray[np.int64]:
    """(objects, 6) counts of one frame."""
    truth, prediction = read_labels(truth_path), read_labels(prediction_path)
    if truth.shape != prediction.shape:
        raise DataError(
            f"{prediction_path} is of size {prediction.shape} where {truth_path} is {truth.shape}",
            "predict at the size of the truth; nothing is resized here",
        )
    return count_frames((prediction == label, truth == label) for label in objects)


def _sequences(folder: Path) -> list[str]:
    names = _folders(folder)
    if not names:
        raise DataError(f"{folder} holds no folder of label pictures", "expected <sequence>/<frame>.png below it")
    return names


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "name the folder that holds one folder per sequence")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _pictures(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.glob("*.png"))
    if not names:
        raise DataError(f"{folder} has no PNG", "every sequence of the truth needs its label pictures")
    return names
