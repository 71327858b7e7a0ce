"""Where the layouts lie below the root, and how their files are written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salmacli.config.files import write_atomic
from salmacli.data.synthetic.video import FRAME_NAMES, Story

FOLDERS = {
    "mevis": "mevis",
    "revos": "revos",
    "davis": "davis17",
    "refytvos": "rvos",
    "refcoco": "refcoco",
    "refcoco+": "refcoco",
    "refcocog": "refcoco",
    "grefcoco": "refcoco",
    "own": "own",
}
MEVIS_SPLITS = {"train": "train", "valid": "valid", "held_out": "valid_u"}

Stories = Mapping[str, Sequence[Story]]


def frames_folder(root: Path, split: str) -> Path:
    """Where the frames of a split lie."""
    return root / "mevis" / MEVIS_SPLITS[split] / "JPEGImages"


def link_video(source: Path, target: Path) -> None:
    """Puts a video's frames into another folder too."""
    target.mkdir(parents=True)
    for frame in FRAME_NAMES:
        link(source / f"{frame}.jpg", target / f"{frame}.jpg")


def link(source: Path, target: Path) -> None:
    """Puts a file at a second place without storing it twice, where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def dump_json(path: Path, obj: Any) -> None:
    """Writes JSON as short as the real sets do."""
    write_atomic(path, json.dumps(obj, separators=(",", ":")))


def dump_pickle(path: Path, obj: Any) -> None:
    """Writes a pickle that has the same bytes each time."""
    # Through JSON first: a pickle's bytes depend on which equal strings are one object in memory, and that
    # differs with the number of processes.
    write_atomic(path, pickle.dumps(json.loads(json.dumps(obj)), protocol=4))
