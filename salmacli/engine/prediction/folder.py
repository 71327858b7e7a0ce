"""The predictions folder: what is in it, whose it is, and one file per video."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from salmacli.config.files import legible, read_json, safe_name, write_atomic, write_json
from salmacli.data.records import Video
from salmacli.engine.progress import Progress
from salmacli.errors import DataError

if TYPE_CHECKING:
    from salmacli.engine.prediction.tracks import Track

SCHEMA = 1
RECORD = "prediction.json"
_NAMED = 3  # in a message
_STALE = 3600  # seconds after which nobody writes a file any more
# What the record says beside what makes predictions the same.
_BESIDE = ("complete", "failed", "settings", "speed")


def claim(folder: Path, record: Mapping[str, Any], progress: Progress) -> None:
    """Make the folder hold what was predicted as `record` says and nothing else; what it held before is set aside."""
    path = folder / RECORD
    if path.exists() and not same(read_json(path), record):
        aside = _free_name(folder)
        folder.rename(aside)
        what = "another checkpoint, split, data, settings or version of SALMA"
        progress.say(f"{folder} held predictions of {what}; they are now in {aside}")
    for part in folder.glob(".*.part"):  # what a kill left of a file
        if time.time() - part.stat().st_mtime > _STALE:
            part.unlink(missing_ok=True)
    write_json(path, {**record, "complete": False})


def same(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records are of the same predictions: not where the checkpoint lies counts, but what it holds."""
    return _identity(record) == _identity(other)


def finish(folder: Path, record: Mapping[str, Any], failed: Mapping[str, str]) -> None:
    """Write down that nothing is left to do, or which videos could not be predicted and why."""
    reasons = {legible(name): legible(reason) for name, reason in failed.items()}
    write_json(folder / RECORD, {**record, "complete": not failed, **({"failed": reasons} if failed else {})})


def refuse_failed(folder: Path, benchmark: str) -> None:
    """Stop where videos could not be predicted.

    Raises:
        DataError: It says how many, the first ones and why.
    """
    failed = read_json(folder / RECORD).get("failed", {})
    if not failed:
        return
    first = "; ".join(f"{name} ({reason})" for name, reason in list(failed.items())[:_NAMED])
    more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    raise DataError(
        f"{len(failed)} videos of {benchmark} could not be predicted: {first}{more}",
        "mend them and run the same command again, which predicts only those; or score the others with"
        f" --predictions {folder} --missing drop",
    )


def done(folder: Path, video: Video, save_logits: bool) -> bool:
    """Whether a video is on disk, whole."""
    kinds = ("json", "npz") if save_logits else ("json",)
    return all(_file(folder, video, kind).exists() for kind in kinds)


def write(
    folder: Path, video: Video, size: tuple[int, int], tracks: Sequence[Track], save_logits: bool = False
) -> None:
    """Write one video.

    Args:
        folder: Of the predictions.
        video: Its expressions are those of the tracks.
        size: (height, width) of its frames.
        tracks: One per expression.
        save_logits: Also write ``<video>.npz``.
    """
    ids = [expression.id for expression in video.expressions]
    if save_logits:
        buffer = io.BytesIO()
        logits = {name: track.logits for name, track in zip(ids, tracks, strict=True) if track.logits is not None}
        np.savez_compressed(buffer, **logits)  # type: ignore[arg-type]
        write_atomic(_file(folder, video, "npz"), buffer.getvalue())
    write_json(_file(folder, video, "json"), video_record(video.name, size, video.frames, ids, tracks))


def video_record(
    name: str, size: tuple[int, int], frames: Sequence[str], expressions: Sequence[str], tracks: Sequence[Track]
) -> dict[str, Any]:
    """What the file of one video holds, masks as COCO counts.

    Args:
        name: Of the video.
        size: (height, width) of its frames.
        frames: Their names.
        expressions: Id of each expression.
        tracks: What was predicted for it.
    """
    return {
        "schema": SCHEMA,
        "video": name,
        "size": list(size),
        "frames": list(frames),
        "expressions": {
            key: {
                "text": track.text,
                "answer": track.answer,
                **({"answers": list(track.answers)} if len(set(track.answers)) > 1 else {}),
                "fallback": track.reason,
                "empty_frames": track.empty,
                "filled_frames": track.filled,
                "masks": list(track.counts),
            }
            for key, track in zip(expressions, tracks, strict=True)
        },
    }


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    checkpoint = {key: value for key, value in record.get("checkpoint", {}).items() if key != "path"}
    return {**{key: value for key, value in record.items() if key not in _BESIDE}, "checkpoint": checkpoint}


def _free_name(folder: Path) -> Path:
    return next(path for n in range(1, 10_000) if not (path := folder.with_name(f"{folder.name}.old-{n}")).exists())


def _file(folder: Path, video: Video, kind: str) -> Path:
    return folder / f"{safe_name(video.name, 'a video name')}.{kind}"
