"""``salma eval``: a checkpoint and a benchmark, or predictions on disk → scores."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from salmacli.data.benchmarks import Benchmark
    from salmacli.engine.progress import Progress


class Set(str, Enum):
    """Benchmarks that have a protocol."""

    davis = "davis"
    mevis = "mevis"
    revos = "revos"


class Mode(str, Enum):
    """How a video is predicted."""

    frames = "frames"
    consistent = "consistent"


class Missing(str, Enum):
    """What becomes of predictions that are not there."""

    error = "error"
    zero = "zero"
    drop = "drop"


def evaluate(
    benchmark: Annotated[Set, typer.Argument(help="The benchmark.")],
    run: Annotated[Optional[Path], typer.Option(help="Folder of a run; the newest one if not given.")] = None,  # noqa: UP045 - Typer evaluates this on Python 3.10
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint instead of a run's newest.")] = None,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The benchmark's folder in its official layout; the synthetic benchmark if not given."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="The split; the one that people report if not given.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="How videos are predicted; the model's own if not given.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Score this folder and predict nothing.")] = None,
    missing: Annotated[
        Missing, typer.Option(help="What a missing prediction is: an error, a score of 0, or left out.")
    ] = Missing.error,
    truth: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="davis: folder of true label PNGs <sequence>/<frame>.png, for --predictions of the same form."
        ),
    ] = None,
    save_logits: Annotated[
        bool, typer.Option("--save-logits", help="Keep mask logits for salma threshold-sweep.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json instead of a table.")] = False,
) -> None:
    """Predict a benchmark with a model and score it, or score predictions that exist."""
    from salmacli.errors import UsageError
    from salmacli.report.progress import TerminalProgress

    progress = TerminalProgress()
    if truth is not None:
        others = (run, checkpoint, data, split, mode, save_logits or None)
        if benchmark is not Set.davis or predictions is None or any(option is not None for option in others):
            raise UsageError(
                "--truth needs davis and --predictions, and takes none of the options about models and data",
                "salma eval davis --truth DIR --predictions DIR",
            )
        _label_folders(truth, predictions, progress, as_json)
        return
    if predictions is not None and (run or checkpoint):
        raise UsageError("--predictions scores what is on disk, --run and --checkpoint predict", "give one of them")

    from salmacli.engine.sources import open_source

    source = open_source(benchmark.value, data, split, progress)
    if source.synthetic:
        progress.say(f"data: the synthetic benchmark in {benchmark.value}'s layout ({source.root}, {source.split})")
    if predictions is not None:
        folder, record = predictions, dict[str, Any]()
    else:
        folder, record = _predict(source, run, checkpoint, mode, save_logits, progress)
    _score(source, folder, record, missing, progress, as_json)


def _predict(
    source: Benchmark,
    run: Path | None,
    checkpoint: Path | None,
    mode: Mode | None,
    save_logits: bool,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    """Make or complete the predictions; their folder and what the results say about where they come from."""
    from salmacli.engine.predictor import ensure_predictions
    from salmacli.engine.run_folder import RunFolder

    chosen = RunFolder(run) if run else None
    if chosen is None and checkpoint is None:
        chosen = RunFolder.newest()
        progress.say(f"run: {chosen.path} (the newest)")
    return ensure_predictions(
        chosen,
        source,
        mode.value if mode else None,
        checkpoint=checkpoint,
        save_logits=save_logits,
        progress=progress,
    )


def _score(
    source: Benchmark,
    folder: Path,
    record: dict[str, Any],
    missing: Missing,
    progress: Progress,
    as_json: bool,
) -> None:
    from salmacli.engine.evaluator import evaluate as score
    from salmacli.report.console import emit_json, result
    from salmacli.report.tables import results_table

    evaluation = score(source, folder, missing.value, record, progress)
    # The scores lie beside the predictions: inside, they would be taken for a video.
    place = folder.parent if folder.name == "predictions" else folder.with_name(f"{folder.name}-scores")
    path = evaluation.write(place)
    if as_json:
        emit_json(evaluation.results)
    else:
        result(results_table(evaluation.results))
    progress.say(f"written: {path} and {path.with_name('per_expression.csv')}")


def _label_folders(truth: Path, predictions: Path, progress: Progress, as_json: bool) -> None:
    from salmacli.engine.label_folders import score_label_folders
    from salmacli.report.console import emit_json, result
    from salmacli.report.tables import label_table

    scores = score_label_folders(truth, predictions, progress=progress)
    if as_json:
        emit_json({"schema": 1, "rows": scores.rows, "scores": scores.scores, "extra": scores.extra})
    else:
        result(label_table(scores))
