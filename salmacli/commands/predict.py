"""``salma predict``: frames and sentences → masks, a picture and a short video to look at."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from salmacli.commands.options import ModeOption

if TYPE_CHECKING:
    import numpy as np

    from salmacli.engine.prediction.tracks import Track


def predict(
    source: Annotated[
        Path, typer.Argument(metavar="FRAMES_OR_VIDEO", help="A folder of frames, a video or a picture.")
    ],
    text: Annotated[list[str], typer.Option(help="What to segment; repeatable.")],
    run: Annotated[Optional[Path], typer.Option(help="Folder of a run; the newest one if not given.")] = None,  # noqa: UP045 - Typer evaluates this on Python 3.10
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint instead of a run's newest.")] = None,
    mode: ModeOption = None,
    answer: Annotated[
        str | None, typer.Option(help="What the model answers, with [SEG]; its own words if not given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the results go; predictions/<name> if not given.")] = None,
    save_logits: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Also keep logits, [SEG] embedding and masks as arrays.")
    ] = None,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames per second of the video that is written.")] = 10.0,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Segment what a sentence means in a video or picture."""
    from salmacli.data.frames import frames_of
    from salmacli.engine.prediction.benchmark import load_model
    from salmacli.engine.prediction.predictor import Predictor
    from salmacli.engine.run_folder import RunFolder
    from salmacli.report.console import emit_json, result, say

    _check(text, answer, save_logits, force)
    frames = frames_of(source)
    names, pictures = frames.names, list(frames)
    folder = out or Path("predictions") / (source.resolve().stem or "video")
    places = [folder / f"{n:02d}-{_slug(sentence)}" for n, sentence in enumerate(text, 1)]
    _check_free(places, force)
    chosen = RunFolder(run) if run else RunFolder.newest() if checkpoint is None else None
    model, info = load_model(chosen, checkpoint)
    say(f"checkpoint: {info.path} (step {info.step})")
    predictor = Predictor(model, mode.value if mode else model.config.inference_mode)
    tracks = predictor.video(pictures, text, still=frames.still, answer=answer)
    if save_logits is not None:
        _save_logits(save_logits, tracks[0])
    rows = [_write(place, names, pictures, track, fps) for place, track in zip(places, tracks, strict=True)]
    if as_json:
        emit_json(
            {
                "schema": 1,
                "source": str(source),
                "mode": predictor.mode,
                "checkpoint": info.record(),
                "expressions": rows,
            }
        )
    else:
        result(_table(rows, len(pictures)))


def _check(text: list[str], answer: str | None, save_logits: Path | None, force: bool) -> None:
    """What can be said about the options before a model is loaded."""
    from salmacli.data.templates import SEG
    from salmacli.errors import UsageError

    if answer is not None and answer.count(SEG) != 1:
        raise UsageError(f"--answer {answer!r} needs one {SEG}", f'write --answer "Sure, {SEG}."')
    if save_logits is None:
        return
    if len(text) != 1:
        raise UsageError(f"--save-logits keeps the arrays of one --text, not of {len(text)}", "ask one at a time")
    if save_logits.suffix != ".npz":
        raise UsageError(f"--save-logits {save_logits} is no .npz", "name a file that ends in .npz")
    if save_logits.exists() and not force:
        raise UsageError(f"{save_logits} exists already", "replace it with --force, or name another file")


def _save_logits(path: Path, track: Track) -> None:
    """``logits`` (T, 1, S, S) float32, ``embedding`` (1, C) float32 and ``masks`` (T, H, W) bool."""
    import io

    import numpy as np

    from salmacli.config.files import write_atomic
    from salmacli.engine.prediction.tracks import resized
    from salmacli.errors import DataError

    if track.logits is None or track.embedding is None:
        raise DataError(
            f"the answer {track.answer!r} has no [SEG], so there are no logits", 'try --answer "Sure, [SEG]."'
        )
    logits = resized(track.logits, (track.side, track.side)).unsqueeze(1)
    arrays = {
        "logits": logits.float().cpu().numpy(),
        "embedding": track.embedding.float().cpu().numpy()[None],
        "masks": track.masks(),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def _check_free(places: list[Path], force: bool) -> None:
    from salmacli.errors import UsageError

    taken = next((place for place in places if place.exists()), None)
    if taken is not None and not force:
        raise UsageError(f"{taken} exists already", "replace it with --force, or name another place with --out")


def _write(place: Path, names: tuple[str, ...], frames: list[np.ndarray], track: Track, fps: float) -> dict[str, Any]:
    """Masks as PNGs, an overlay picture and an overlay video of one expression; what the report says about it."""
    import io
    import shutil

    from PIL import Image

    from salmacli.config.files import write_atomic
    from salmacli.report.overlays import overlay, overlay_sheet, write_video

    masks = track.masks()
    if place.exists():  # masks of an earlier, longer video must not lie among the new ones
        shutil.rmtree(place)
    for name, mask in zip(names, masks, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(mask).convert("L").save(buffer, "PNG")
        write_atomic(place / "masks" / f"{name}.png", buffer.getvalue())
    buffer = io.BytesIO()
    overlay_sheet(frames, list(masks), track.text).save(buffer, "PNG")
    write_atomic(place / "overlay.png", buffer.getvalue())
    write_video(place / "overlay.mp4", (overlay(frame, mask) for frame, mask in zip(frames, masks, strict=True)), fps)
    return {
        "text": track.text,
        "answer": track.answer,
        "fallback": "no-seg" if track.logits is None else None if masks.any() else "empty",
        "frames_with_mask": int(masks.any(axis=(1, 2)).sum()),
        "mean_area": float(masks.mean()),
        "folder": str(place),
    }


def _table(rows: list[dict[str, Any]], frames: int) -> Any:
    from rich.table import Table

    table = Table()
    for column in ("sentence", "answer", "frames with a mask", "mean area", "written to"):
        table.add_column(column, overflow="fold")
    for row in rows:
        note = f" ({row['fallback']})" if row["fallback"] else ""
        count = f"{row['frames_with_mask']} of {frames}{note}"
        table.add_row(row["text"], row["answer"], count, f"{row['mean_area']:.1%}", f"{row['folder']}/")
    return table


def _slug(sentence: str) -> str:
    """A short file name of a sentence."""
    return re.sub(r"[^a-z0-9]+", "-", sentence.lower()).strip("-")[:40].rstrip("-") or "expression"
