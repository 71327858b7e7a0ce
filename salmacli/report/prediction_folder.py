"""What `salma predict` leaves: run lengths, masks, pictures and videos to look at; a folder that is whole or not there.

<out>/predictions.json      run lengths of all sentences, as `salma eval` writes them per video
      overlay.png, .mp4     with several sentences: all of them, each in its colour
      01-the-red-circle/    per sentence: masks/<frame>.png, overlay.png, overlay.mp4
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from salmacli.checkpoints.files.disk import replacing
from salmacli.config.files import write_json
from salmacli.data.ahead import in_order
from salmacli.data.frames import FrameSource
from salmacli.engine.progress import Progress, Silent
from salmacli.errors import UsageError
from salmacli.report.overlays import Layer, overlay_frames, overlay_sheet, write_video

RECORD = "predictions.json"

Item = TypeVar("Item")

_FPS = 10.0  # of folders, which do not say
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
        source: The frames; read again for every overlay, so that no more than a few are held.
        layers: Sentences and their masks, by the names of their folders.
        record: What ``predictions.json`` is to hold.
        kinds: Of rle, masks, overlay, video. Of a picture no video is written.
        fps: Frames per second of the videos; the source's own if not given.
        progress: Told of every frame that is written.
    """
    places = dict(zip(layers, ([layer] for layer in layers.values()), strict=True))
    if len(layers) > 1:
        places["."] = list(layers.values())
    videos = "video" in kinds and not source.still
    steps = ("masks" in kinds) * len(layers) + videos * len(places)
    progress = progress or Silent()
    progress.start("writing", steps * len(source) + ("overlay" in kinds) * len(places))
    try:
        with replacing(folder.resolve()) as part:
            for name, shown in places.items():
                if "masks" in kinds and name != ".":
                    _write_masks(part / name / "masks", source.names, shown[0], progress)
                if "overlay" in kinds:
                    (part / name).mkdir(exist_ok=True)
                    overlay_sheet(source, shown).save(part / name / "overlay.png")
                    progress.advance()
                if videos:
                    with closing(overlay_frames(source, shown)) as frames:
                        write_video(part / name / "overlay.mp4", _told(frames, progress), fps or source.fps or _FPS)
            if "rle" in kinds:
                write_json(part / RECORD, record)
    finally:
        progress.finish()


def _write_masks(folder: Path, names: Sequence[str], layer: Layer, progress: Progress) -> None:
    folder.mkdir(parents=True)

    def write(number: int) -> None:
        Image.fromarray(layer.mask(number)).convert("L").save(folder / f"{names[number]}.png")

    with closing(in_order(write, range(len(names)), threads=4, ahead=8)) as written:
        for _ in _told(written, progress):
            pass


def _told(items: Iterable[Item], progress: Progress) -> Iterator[Item]:
    for item in items:
        yield item
        progress.advance()
