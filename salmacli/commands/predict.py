"""``salma predict``: frames and sentences → masks, pictures and short videos to look at."""

from __future__ import annotations

import tempfile
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from salmacli.commands.options import (
    PREDICTION,
    CheckpointOption,
    FallbackOption,
    ModeOption,
    PrecisionOption,
    RunOption,
    SettingsOption,
    chosen_run,
    prediction_settings,
)
from salmacli.errors import UsageError

if TYPE_CHECKING:
    from salmacli.checkpoints.load import CheckpointInfo
    from salmacli.data.frames import FrameSource
    from salmacli.engine.prediction.predictor import Predictor
    from salmacli.engine.prediction.tracks import Track
    from salmacli.engine.progress import Progress

OUTPUT = "Output"  # a panel in --help
_CELL = 40  # columns of a sentence or an answer in the table
_READ = 8 * _CELL  # characters of it that are looked at: spaces that are many become one


class Kind(str, Enum):
    """What ``--write`` takes."""

    rle = "rle"
    masks = "masks"
    overlay = "overlay"
    video = "video"


def predict(
    source: Annotated[
        Path, typer.Argument(metavar="FRAMES_OR_VIDEO", help="A folder of frames, a video or a picture.")
    ],
    text: Annotated[list[str], typer.Option(help="What to segment; repeatable.")],
    run: RunOption = None,
    checkpoint: CheckpointOption = None,
    mode: ModeOption = None,
    fallback: FallbackOption = None,
    precision: PrecisionOption = None,
    settings: SettingsOption = None,
    answer: Annotated[
        Optional[str],  # noqa: UP045 - Typer evaluates this on Python 3.10
        typer.Option(
            help="What the model answers, with [SEG]; its own words if not given.", rich_help_panel=PREDICTION
        ),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the results; predictions/<name> if not given.", rich_help_panel=OUTPUT),
    ] = None,
    write: Annotated[
        Optional[list[Kind]],  # noqa: UP045
        typer.Option(
            help="Run lengths (JSON), masks (PNG), an overlay picture, an overlay video; repeatable, all if not given.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    save_logits: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FILE.npz", help="Also keep logits, [SEG] embedding and masks as arrays.", rich_help_panel=OUTPUT
        ),
    ] = None,
    fps: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Of the overlay video, 0.1 to 1000; as the source if not given, 10 for a folder.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier prediction.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Segment what sentences mean in a video or picture."""
    how = prediction_settings(mode, fallback, precision, settings)
    _check_words(text, answer, fps)
    folder = Path("predictions") / _name(source) if out is None else out
    _check_places(source, folder, save_logits, len(text), force)

    from salmacli.data.frames import frames_of

    frames = frames_of(source)
    height, width = frames.size  # so the first frame has been read before a model is
    kinds = {kind.value for kind in write or Kind} - ({"video"} if frames.still else set())
    if not kinds:
        raise UsageError(f"{source} is one picture, of which no video is written", "write --write overlay")
    from salmacli.report.console import emit_json, result, say

    chosen = chosen_run(run, checkpoint, say)
    if chosen is not None:
        chosen.newest_checkpoint()  # or its lack would be told after the model's libraries are loaded
    for option, place in (("--out", folder), ("--save-logits", save_logits)):
        if place is not None:
            _check_writable(option, place)

    from salmacli.config.files import write_atomic
    from salmacli.engine.prediction.benchmark import load_model
    from salmacli.engine.prediction.folder import video_record
    from salmacli.engine.prediction.predictor import Predictor
    from salmacli.report.overlays import Layer, colour_of
    from salmacli.report.prediction_folder import sentence_folders, write_prediction
    from salmacli.report.progress import TerminalProgress

    progress = TerminalProgress()
    progress.say(f"source: {source}, {len(frames)} {'frame' if len(frames) == 1 else 'frames'} of {width}x{height}")
    model, info = load_model(chosen, checkpoint, how.precision)
    progress.say(f"checkpoint: {info.path} (step {info.step})")
    predictor = Predictor(model, how, progress.say)
    tracks = _tracks(predictor, frames, text, answer, save_logits is not None, progress)
    names = sentence_folders(text)
    layers = {name: Layer(t.text, t.mask, colour_of(n)) for n, (name, t) in enumerate(zip(names, tracks, strict=True))}
    record = video_record(_name(source), frames.size, frames.names, names, tracks)
    arrays = b"" if save_logits is None else _arrays(tracks[0])
    write_prediction(folder, frames, layers, record, kinds, fps, progress)
    if save_logits is not None:
        write_atomic(save_logits, arrays)
    places = [None if kinds == {"rle"} else folder / name for name in names]
    rows = [_row(track, place) for track, place in zip(tracks, places, strict=True)]
    if as_json:
        emit_json({**_about(source, frames, predictor, info), "out": str(folder), "expressions": rows})
    else:
        result(_table(rows, len(frames)))
    progress.say(f"written: {folder}/" + (f" and {save_logits}" if save_logits else ""))


def _check_words(text: list[str], answer: str | None, fps: float | None) -> None:
    """What can be said about sentences and numbers before anything is read."""
    from salmacli.data.templates import SEG

    for number, sentence in enumerate(text, 1):
        if not sentence.strip():
            raise UsageError(f"--text {number} of {len(text)} is empty", "say what to segment")
        if not _is_utf8(sentence):
            raise UsageError(f"--text {number} of {len(text)} is not UTF-8: {sentence!r}", "write it in UTF-8")
    if answer is not None and not _is_utf8(answer):
        raise UsageError(f"--answer is not UTF-8: {answer!r}", "write it in UTF-8")
    if answer is not None and answer.count(SEG) != 1:
        raise UsageError(f"--answer {answer!r} needs one {SEG}", f'write --answer "Sure, {SEG}."')
    if fps is not None and not 0.1 <= fps <= 1000:  # nor is NaN
        raise UsageError(f"--fps {fps} is no number between 0.1 and 1000", "write --fps 10")


def _is_utf8(text: str) -> bool:
    """Whether no byte of what was typed had to be smuggled in as half a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _check_places(source: Path, folder: Path, save_logits: Path | None, texts: int, force: bool) -> None:
    """Whether what is predicted can go where it is wanted, before it is predicted."""
    from salmacli.report.prediction_folder import check_free

    try:
        check_free(folder, force, save_logits)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be used ({error.strerror})", "name another place") from None
    if folder.resolve() in (source.resolve(), *source.resolve().parents):
        raise UsageError(f"--out {folder} holds {source}, which would be replaced", "name another folder")
    if save_logits is not None:
        if texts != 1:
            raise UsageError(f"--save-logits keeps the arrays of one --text, not of {texts}", "ask one at a time")
        if save_logits.suffix != ".npz":
            raise UsageError(f"--save-logits {save_logits} is no .npz", "name a file that ends in .npz")
        if save_logits.exists() and not force:
            raise UsageError(f"{save_logits} exists already", "replace it with --force, or name another file")


def _check_writable(option: str, path: Path) -> None:
    """Try, before anything is predicted, whether something can be made at a place; its parent folder stays."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)).rmdir()
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{option} {path}: nothing can be written there ({reason})", "name another place") from None


def _tracks(
    predictor: Predictor,
    frames: FrameSource,
    text: list[str],
    answer: str | None,
    keep_logits: bool,
    progress: Progress,
) -> list[Track]:
    progress.start("predicting", len(frames))
    try:
        return predictor.video(frames, text, answer=answer, keep_logits=keep_logits, advance=progress.advance)
    finally:
        progress.finish()


def _name(source: Path) -> str:
    """What a video is called: its folder, or its file without suffix."""
    path = source.resolve()
    return (path.name if path.is_dir() else path.stem) or "video"


def _arrays(track: Track) -> bytes:
    """An npz: ``logits`` (T, 1, S, S) float32, ``embedding`` (1, C) float32 and ``masks`` (T, H, W) bool."""
    import io

    import numpy as np
    import torch

    from salmacli.engine.prediction.tracks import resized
    from salmacli.errors import DataError

    if track.logits is None or track.embedding is None:
        raise DataError(
            f"the answer {track.answer!r} has no [SEG], so there are no logits", 'try --answer "Sure, [SEG]."'
        )
    logits = resized(torch.from_numpy(track.logits), (track.side, track.side)).unsqueeze(1)
    arrays = {
        "logits": logits.numpy(),
        "embedding": track.embedding.float().cpu().numpy()[None],
        "masks": track.masks(),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _about(source: Path, frames: FrameSource, predictor: Predictor, info: CheckpointInfo) -> dict[str, Any]:
    return {
        "schema": 1,
        "source": str(source),
        "frames": len(frames),
        "size": list(frames.size),
        "mode": predictor.mode,
        "settings": predictor.settings.model_dump(mode="json"),
        "checkpoint": info.record(),
    }


def _row(track: Track, place: Path | None) -> dict[str, Any]:
    """What the report says about one sentence."""
    from salmacli.data import rle
    from salmacli.engine.prediction.folder import said_of

    areas = [rle.bits({"size": list(track.size), "counts": counts}).area() for counts in track.counts]
    return {
        **said_of(track),
        "frames_with_mask": sum(area > 0 for area in areas),
        "mean_area": sum(areas) / (len(areas) * track.size[0] * track.size[1]),
        "folder": str(place) if place else None,
    }


def _table(rows: list[dict[str, Any]], frames: int) -> Any:
    from rich.table import Table

    table = Table()
    for column in ("sentence", "answer", "frames with a mask", "mean area", "folder"):
        table.add_column(column, overflow="fold", justify="right" if column == "mean area" else "left")
    for row in rows:
        notes = [row["fallback"]] if row["fallback"] else []
        notes += [f"{row['filled_frames']} filled"] if row["filled_frames"] else []
        count = f"{row['frames_with_mask']} of {frames}" + (f" ({', '.join(notes)})" if notes else "")
        folder = f"{Path(row['folder']).name}/" if row["folder"] else "–"
        table.add_row(_shown(row["text"]), _shown(row["answer"]), count, f"{row['mean_area']:.1%}", folder)
    return table


def _shown(text: str) -> Any:
    """A cell of the table: short, and nothing in it steers the terminal, whatever a model answers."""
    from rich.text import Text

    from salmacli.config.files import legible

    plain = " ".join(legible(text[:_READ]).split())
    # Terminals do not agree on how wide the replacement character is, of which untrained models say a lot.
    printed = "".join(one if one.isprintable() and one != "\N{REPLACEMENT CHARACTER}" else "?" for one in plain)
    cell = Text(printed + "…" * (len(text) > _READ))
    cell.truncate(_CELL, overflow="ellipsis")
    return cell
