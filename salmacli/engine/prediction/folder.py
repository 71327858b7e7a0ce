"""The predictions folder: what is in it, whose it is, and one file per video."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from salmacli.config.files import read_json, safe_name, write_atomic, write_json
from salmacli.data import rle
from salmacli.data.records import Video
from salmacli.engine.prediction.tracks import Track
from salmacli.engine.progress import Progress

SCHEMA = 1


def claim(folder: Path, record: dict[str, Any], progress: Progress) -> None:
    """Make sure that what is in the folder was predicted as `record` says, or set it aside."""
    path = folder / "prediction.json"
    if path.exists():
        if _identity(read_json(path)) == _identity(record):
            return
        aside = _free_name(folder)
        folder.rename(aside)
        progress.say(f"{folder} held predictions of another checkpoint, split or data; they are now in {aside}")
    write_json(path, {**record, "complete": False})


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    """What makes predictions the same: not where the checkpoint lies, but what it holds."""
    checkpoint = {key: value for key, value in record.get("checkpoint", {}).items() if key != "path"}
    return {**{key: value for key, value in record.items() if key != "complete"}, "checkpoint": checkpoint}


def _free_name(folder: Path) -> Path:
    return next(path for n in range(1, 10_000) if not (path := folder.with_name(f"{folder.name}.old-{n}")).exists())


def done(folder: Path, video: Video, save_logits: bool) -> bool:
    """Whether a video is on disk, whole."""
    name = safe_name(video.name, "a video's name")
    # The logits are written first, so a video's JSON promises that they are whole.
    return (folder / f"{name}.json").exists() and (not save_logits or (folder / f"{name}.npz").exists())


def write(folder: Path, video: Video, tracks: Sequence[Track], save_logits: bool) -> None:
    """Write one video."""
    name = safe_name(video.name, "a video's name")
    if save_logits:
        buffer = io.BytesIO()
        arrays = {
            expression.id: track.logits.cpu().numpy()
            for expression, track in zip(video.expressions, tracks, strict=True)
            if track.logits is not None
        }
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_atomic(folder / f"{name}.npz", buffer.getvalue())
    expressions = {}
    for expression, track in zip(video.expressions, tracks, strict=True):
        masks = track.masks()
        fallback = "no-seg" if track.logits is None else None if masks.any() else "empty"
        expressions[expression.id] = {
            "text": expression.text,
            "answer": track.answer,
            "fallback": fallback,
            "masks": [rle.encode(mask)["counts"] for mask in masks],
        }
    write_json(
        folder / f"{name}.json",
        {
            "schema": SCHEMA,
            "video": video.name,
            "size": list(tracks[0].size) if tracks else [0, 0],
            "frames": list(video.frames),
            "expressions": expressions,
        },
    )
