"""Parts of annotation files taken out with their type checked, since the files come from strangers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from salmacli.config.files import read_json, safe_name
from salmacli.errors import DataError

MEND = "fetch the file again, in the set's official layout"


_FAULTS: ContextVar[list[DataError] | None] = ContextVar("faults", default=None)


@contextmanager
def tolerant() -> Iterator[list[DataError]]:
    """Within it, what is broken in a file is left out and listed, where it would else end the reading."""
    faults: list[DataError] = []
    before = _FAULTS.set(faults)
    try:
        yield faults
    finally:
        _FAULTS.reset(before)


@contextmanager
def part() -> Iterator[None]:
    """Around what is made of one part of a file, which can be left out without harm to the others."""
    try:
        yield
    except DataError as error:
        faults = _FAULTS.get()
        if faults is None:
            raise
        faults.append(error)


def read_videos(path: Path) -> dict[str, Any]:
    """Reads ``{"videos": {name: …}}``; see :func:`named_video` for what is in there."""
    videos = mapping(mapping(read_json(path), str(path)).get("videos"), f"{path}, key videos")
    if not videos:
        raise DataError(f"{path} lists no videos", MEND)
    return videos


def named_video(name: str, value: Any, path: Path) -> dict[str, Any]:
    """``{"frames", "expressions"}`` under a name that is a plain one."""
    safe_name(name, f"{path}, key videos")
    return mapping(value, f"{path}, video {name}")


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: an object is needed, found {_short(value)}", MEND)
    return value


def listing(value: Any, where: str) -> list[Any]:
    """A JSON list."""
    if not isinstance(value, list):
        raise DataError(f"{where}: a list is needed, found {_short(value)}", MEND)
    return value


def number(value: Any, where: str) -> int:
    """An integer; a string of digits counts, since the sets are not of one mind."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where}: an integer is needed, found {_short(value)}", MEND)
    return value


def frame_names(video: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The frame names of a video, sorted as strings as the official code does."""
    names = listing(video.get("frames"), f"{where}, key frames")
    if not names:
        raise DataError(f"{where}, key frames: the video has no frames", MEND)
    frames = tuple(sorted(safe_name(name, f"{where}, key frames") for name in names))
    if len(set(frames)) != len(frames):
        raise DataError(f"{where}, key frames: a frame is listed twice", MEND)
    return frames


def expressions(video: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """The expressions of a video by id; each is an object with a text under ``exp``."""
    found = {}
    for key, entry in mapping(video.get("expressions"), f"{where}, key expressions").items():
        with part():
            safe_name(key, f"{where}, key expressions")
            sentence(mapping(entry, f"{where}, expression {key}").get("exp"), f"{where}, expression {key}")
            found[key] = entry
    return found


def sentence(value: Any, where: str) -> str:
    """A text that says something, with white space made single."""
    words = " ".join(value.split()) if isinstance(value, str) else ""
    if not words:
        raise DataError(f"{where}: the expression is empty", "give it a text, or take it out of the file")
    return words


def tags(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What SALMA's own sets say beside the official keys."""
    found = entry.get("tags")
    return dict(found) if isinstance(found, dict) else {}


def track(masks: Mapping[str, Any], key: str, where: str) -> Sequence[Any]:
    """The masks of one object over the frames."""
    if key not in masks:
        raise DataError(f"{where}: no masks under key {key!r}", "fetch the masks that belong to these expressions")
    return listing(masks[key], f"{where}, key {key}")


def split_of(split: str, known: Sequence[str], name: str) -> str:
    """The split, if the set has it."""
    if split not in known:
        raise DataError(f"{name} has no split {split!r}", f"choose one of {', '.join(known)}")
    return split


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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
