"""The predictions folder: what is in it, whose it is, and one file per video."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from salmacli.config.files import legible, read_json, safe_name, write_atomic, write_json
from salmacli.data.records import Video
from salmacli.engine.progress import Progress
from salmacli.engine.scoring.predictions import RECORD, read_object
from salmacli.errors import DataError

if TYPE_CHECKING:
    from salmacli.engine.prediction.tracks import Track

SCHEMA = 1
_NAMED = 3  # in a message
_STALE = 3600  # seconds after which nobody writes a file any more
# What the record says beside what makes predictions the same.
_BESIDE = ("complete", "failed", "settings", "speed")
# What the evaluation of predictions leaves beside them.
_SCORES = ("results.json", "per_*.csv", "per_*.parquet", "*_results-*.csv", "threshold_sweep.*", "over_time", "*.zip")


def claim(folder: Path, record: Mapping[str, Any], progress: Progress) -> None:
    """Make the folder hold what was predicted as `record` says and nothing else.

    What it held before is set aside, together with its scores.

    Raises:
        DataError: Its ``prediction.json`` is broken.
    """
    path = folder / RECORD
    begun = read_record(folder)
    if begun and not same(begun, record):
        _set_aside(folder, "another checkpoint, split, data, settings or version of SALMA", progress)
    elif not begun and any(file for kind in ("json", "npz") for file in folder.glob(f"*.{kind}")):
        _set_aside(folder, f"unknown origin, without {RECORD}", progress)
    for part in folder.glob(".*.part"):  # what a kill left of a file
        if time.time() - part.stat().st_mtime > _STALE:
            part.unlink(missing_ok=True)
    write_json(path, {**record, "complete": False})


def read_record(folder: Path) -> dict[str, Any]:
    """What ``prediction.json`` says; nothing where there is none.

    Raises:
        DataError: It is broken.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    mend = "remove it and run again, which sets the predictions beside it aside and makes them anew"
    record = read_object(path, mend)
    for key in ("checkpoint", "resolved", "failed"):
        if not isinstance(record.get(key, {}), dict):
            raise DataError(f"{path}: {key} is not an object", mend)
    return record


def check_ours(folder: Path, record: Mapping[str, Any]) -> None:
    """Stop where the folder is no longer that of the predictions which `record` is of.

    Raises:
        DataError: Another evaluation has claimed it.
    """
    if not same(read_record(folder), record):
        raise DataError(f"another `salma eval` has taken {folder}", "run this one again when that has ended")


def same(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records are of the same predictions: not where the checkpoint lies counts, but what it holds."""
    return _identity(record) == _identity(other)


def finish(folder: Path, record: Mapping[str, Any], failed: Mapping[str, str]) -> None:
    """Write down that nothing is left to do, or which videos could not be predicted and why.

    Raises:
        DataError: Another evaluation has claimed the folder.
    """
    check_ours(folder, record)
    reasons = {legible(name): legible(reason) for name, reason in failed.items()}
    write_json(folder / RECORD, {**record, "complete": not failed, **({"failed": reasons} if failed else {})})


def refuse_failed(folder: Path, benchmark: str) -> None:
    """Stop where videos could not be predicted.

    Raises:
        DataError: It says how many, the first ones and why.
    """
    failed = read_record(folder).get("failed", {})
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
    path = _file(folder, video, "json")
    if not path.exists() or (save_logits and not zipfile.is_zipfile(_file(folder, video, "npz"))):
        return False
    try:
        content = read_json(path)
    except DataError:
        return False  # so it is predicted again
    return (
        isinstance(content, dict)
        and (content.get("video"), content.get("frames")) == (video.name, list(video.frames))
        and isinstance(content.get("expressions"), dict)
        and content["expressions"].keys() == {expression.id for expression in video.expressions}
    )


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
            key: {**said_of(track), "masks": list(track.counts)} for key, track in zip(expressions, tracks, strict=True)
        },
    }


def said_of(track: Track) -> dict[str, Any]:
    """What is told of a track beside its masks."""
    return {
        "text": track.text,
        "answer": track.answer,
        **({"answers": list(track.answers)} if len(set(track.answers)) > 1 else {}),
        "fallback": track.reason,
        "empty_frames": track.empty,
        "filled_frames": track.filled,
    }


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    checkpoint = {key: value for key, value in record.get("checkpoint", {}).items() if key != "path"}
    return {**{key: value for key, value in record.items() if key not in _BESIDE}, "checkpoint": checkpoint}


def _set_aside(folder: Path, origin: str, progress: Progress) -> None:
    aside = _free_name(folder)
    if folder.name == "predictions":  # in a place of their own, where all scores are of them
        _move_scores(folder)
    folder.rename(aside)  # after its scores: a kill between leaves nothing that looks current
    progress.say(f"{folder} held predictions of {origin}; they are now in {aside}, with their scores if there were any")


def _move_scores(folder: Path) -> None:
    """Move what lies beside predictions, and in the places of other protocols, into their folder."""
    place = folder.parent
    # Those of other settings have a "=" in their names.
    others = [other for other in place.parent.glob(f"{place.name}+*") if "=" not in other.name[len(place.name) :]]
    for scored in (place, *others):
        target = folder / f"scores{scored.name[len(place.name) :]}"
        for path in sorted(path for pattern in _SCORES for path in scored.glob(pattern)):
            target.mkdir(exist_ok=True)
            path.replace(target / path.name)


def _free_name(folder: Path) -> Path:
    return next(path for n in range(1, 10_000) if not (path := folder.with_name(f"{folder.name}.old-{n}")).exists())


def _file(folder: Path, video: Video, kind: str) -> Path:
    return folder / f"{safe_name(video.name, 'a video name')}.{kind}"
