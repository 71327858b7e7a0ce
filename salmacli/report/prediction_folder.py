"""What `salma predict` leaves: run lengths, masks, pictures and videos to look at; a folder that is whole or not there.

<out>/predictions.json      run lengths of all sentences, as `salma eval` writes them per video
      overlay.png, .mp4     with several sentences: all of them, each in its colour
      01-the-red-circle/    per sentence: masks/<frame>.png, overlay.png, overlay.mp4
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from salmacli.checkpoints.files.disk import replacing
from salmacli.config.files import write_json
from salmacli.data.ahead import in_order
from salmacli.data.frames import FrameSource
from salmacli.engine.progress import Progress, Silent
from salmacli.errors import UsageError
from salmacli.report.overlays import Layer, write_overlays

RECORD = "predictions.json"

_FPS = 10.0  # of folders, which do not say
_QUIET = 5.0  # seconds: what another process has just begun may not be held yet
_OURS = re.compile(rf"{re.escape(RECORD)}|(\d\d+-[^/]+/)?overlay\.(png|mp4)|\d\d+-[^/]+/masks/[^/]+\.png")


def sentence_folders(texts: Sequence[str]) -> list[str]:
    """A short and unique folder name per sentence: its number and its first words."""
    digits = max(2, len(str(len(texts))))
    slugs = [re.sub(r"[\W_]+", "-", text.lower()[:80]).strip("-")[:40].rstrip("-") for text in texts]
    return [f"{number:0{digits}d}-{slug or 'expression'}" for number, slug in enumerate(slugs, 1)]


def check_free(folder: Path, force: bool, beside: Path | None = None) -> None:
    """Make sure that a prediction can take a folder's place, before it is made.

    Args:
        folder: Where it is to go.
        force: Replace an earlier prediction; nothing else is ever deleted.
        beside: A file that is written, too, and may lie in it.

    Raises:
        UsageError: There is something else, or an earlier prediction that is to stay.
    """
    place, here = folder.resolve(), Path.cwd()
    if place in (here, *here.parents):
        raise UsageError(f"--out {folder} is the folder you are in, which would be replaced", "name one in it")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file", "name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not force:
            raise UsageError(f"{folder} exists already", "replace it with --force, or name another place with --out")
        root, spared = folder.absolute(), beside and beside.absolute()
        names = [file.relative_to(root).as_posix() for file in sorted(root.rglob("*")) if not file.is_dir()]
        foreign = [name for name in names if not _OURS.fullmatch(name) and root / name != spared]
        if foreign:
            raise UsageError(
                f"{folder} also holds {', '.join(foreign[:4])}, which --force would delete",
                "move that, or give another --out",
            )


def write_prediction(
    folder: Path,
    source: FrameSource,
    layers: Mapping[str, Layer],
    record: Mapping[str, Any],
    kinds: Collection[str],
    fps: float | None = None,
    progress: Progress | None = None,
) -> None:
    """Write what was predicted, frame by frame, in the place of what is there.

    Args:
        folder: Complete when this returns, and as it was when this raises.
        source: The frames; read once for every 8 sentences, few are held.
        layers: Sentences and their masks, by the names of their folders.
        record: What ``predictions.json`` is to hold.
        kinds: Of rle, masks, overlay, video. Of a picture no video is written.
        fps: Frames per second of the videos; the source's own if not given.
        progress: Told of every frame that is written.
    """
    places = {name: [layer] for name, layer in layers.items()}
    if len(layers) > 1:
        places["."] = list(layers.values())
    videos, sheets = "video" in kinds and not source.still, "overlay" in kinds
    steps = ("masks" in kinds) * len(layers) + videos * len(places)
    progress = progress or Silent()
    progress.start("writing", steps * len(source) + sheets * len(places))
    try:
        _remove_abandoned(folder.resolve())
        with replacing(folder.resolve()) as part, _held(part):
            for name, layer in layers.items() if "masks" in kinds else ():
                _write_masks(part / name / "masks", source.names, layer, progress)
            if sheets or videos:
                rate = fps or source.fps or _FPS
                shown = {part / name: several for name, several in places.items()}
                write_overlays(source, shown, sheets, rate if videos else None, progress)
            if "rle" in kinds:
                write_json(part / RECORD, record)
    finally:
        progress.finish()


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes that were killed left of a prediction into the same folder."""
    begun = re.compile(rf"\.{re.escape(folder.name)}\.[a-z0-9_]{{8}}\.part")  # as `replacing` names it
    for part in folder.parent.iterdir() if folder.parent.is_dir() else ():
        if not begun.fullmatch(part.name) or part.is_symlink() or not part.is_dir():
            continue
        with suppress(OSError), _held(part) as ours:  # another process may be about to write or remove it
            if ours and time.time() - max(path.stat().st_mtime for path in (part, *part.rglob("*"))) > _QUIET:
                shutil.rmtree(part)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock a folder for this process; the system lets go of it, however the process ends.

    Yields:
        Whether it is locked: not where another process holds it, or where the system cannot lock folders.
    """
    with ExitStack() as stack:
        try:
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = True
        except (ImportError, OSError):
            ours = False
        yield ours


def _write_masks(folder: Path, names: Sequence[str], layer: Layer, progress: Progress) -> None:
    folder.mkdir(parents=True)

    def write(number: int) -> None:
        Image.fromarray(layer.mask(number)).convert("L").save(folder / f"{names[number]}.png")

    with closing(in_order(write, range(len(names)), threads=4, ahead=8)) as written:
        for _ in written:
            progress.advance()
