"""``salma eval``: a checkpoint and a benchmark, or predictions on disk → scores, or a submission."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from salmacli.commands.options import (
    PREDICTION,
    CheckpointOption,
    DataOption,
    FallbackOption,
    ModeOption,
    PrecisionOption,
    RunOption,
    Set,
    SettingsOption,
    SplitOption,
    chosen_run,
    prediction_settings,
)
from salmacli.errors import SalmaError, UsageError

if TYPE_CHECKING:
    from salmacli.config.schema import PredictConfig
    from salmacli.data.benchmarks import Benchmark
    from salmacli.engine.progress import Progress
    from salmacli.engine.run_folder import RunFolder
    from salmacli.engine.scoring.evaluation import Evaluation


class Missing(str, Enum):
    """What becomes of predictions that are not there."""

    error = "error"
    zero = "zero"
    drop = "drop"


class Scoring(str, Enum):
    """How label pictures are scored."""

    semi_supervised = "semi-supervised"
    unsupervised = "unsupervised"


def evaluate(
    benchmark: Annotated[Set, typer.Argument(help="The benchmark.")],
    run: RunOption = None,
    checkpoint: CheckpointOption = None,
    data: DataOption = None,
    split: SplitOption = None,
    mode: ModeOption = None,
    fallback: FallbackOption = None,
    precision: PrecisionOption = None,
    settings: SettingsOption = None,
    save_logits: Annotated[
        bool,
        typer.Option("--save-logits", help="Keep mask logits for salma threshold-sweep.", rich_help_panel=PREDICTION),
    ] = False,
    num_gpus: Annotated[
        int, typer.Option(min=1, help="Processes that share the videos, one per device.", rich_help_panel=PREDICTION)
    ] = 1,
    predictions: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Score these and predict nothing: a predictions folder, <video>/<expression>/<frame>.png, or one JSON"
            " file of RLEs."
        ),
    ] = None,
    protocol: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="davis: expression or annotators; mevis: v1 or v2. See docs/protocols.md."),
    ] = None,
    visa_compat: Annotated[
        bool, typer.Option("--visa-compat", help="revos: round and count as the official script does.")
    ] = False,
    missing: Annotated[
        Missing, typer.Option(help="What a missing prediction is: an error, a score of 0, or left out.")
    ] = Missing.error,
    submission: Annotated[
        bool,
        typer.Option("--submission", help="Write the zip for the benchmark's server; so it is without public truth."),
    ] = False,
    truth: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="davis: folder of true <sequence>/<frame>.png, for --predictions of the same form."),
    ] = None,
    scoring: Annotated[
        Optional[Scoring],  # noqa: UP045
        typer.Option(help="davis with --truth: semi-supervised (if not given) or unsupervised."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the scores; beside the predictions if not given."),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="Also list this many of the worst cases.")] = 0,
    plot: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="VIDEO/EXPRESSION", help="Also draw J and F over time of one expression."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json instead of a table.")] = False,
) -> None:
    """Predict a benchmark with a model and score it, or score predictions that exist."""
    from salmacli.engine.prediction.shares import rank_of_environment
    from salmacli.engine.progress import Silent
    from salmacli.launch import is_worker
    from salmacli.report.progress import TerminalProgress

    progress: Progress = Silent() if rank_of_environment() else TerminalProgress()
    _check_out(out, predictions, data)
    predicting = [run, checkpoint, mode, fallback, precision, settings, save_logits or None, num_gpus > 1 or None]
    if worst and as_json:
        raise UsageError("--worst makes a table, --json prints none", "leave out one of them")
    if truth is not None or scoring is not None:
        others = [*predicting, data, split, protocol, submission or None, visa_compat or None]
        if benchmark is not Set.davis or truth is None or predictions is None or any(o is not None for o in others):
            raise UsageError(
                "--truth and --scoring need davis and --predictions, and none of the options about models and data",
                "salma eval davis --truth DIR --predictions DIR",
            )
        _announce(progress)
        from salmacli.engine.scoring.label_folders import score_label_folders

        kind = (scoring or Scoring.semi_supervised).value
        evaluation = score_label_folders(truth, predictions, kind, missing=missing.value, progress=progress)
        place = out or _beside(predictions, kind if scoring is Scoring.unsupervised else None)
        _report(evaluation, place, worst, plot, progress, as_json)
        return
    if predictions is not None and any(option is not None for option in predicting):
        raise UsageError(
            "--predictions scores what is on disk; --run, --checkpoint, --num-gpus, --save-logits and the settings of"
            " prediction predict",
            "leave out one or the other",
        )
    how = prediction_settings(mode, fallback, precision, settings)
    chosen = _protocol(benchmark, protocol, visa_compat)

    from salmacli.engine.sources import open_source

    # Before the data, which may first have to be made.
    begun = chosen_run(run, checkpoint, progress.say) if predictions is None else None
    source = open_source(benchmark.value, data, split, progress)
    if source.synthetic and not is_worker():
        progress.say(f"data: the synthetic benchmark in {benchmark.value}'s layout ({source.root}, {source.split})")
    submission = submission or not source.public
    if plot is not None and plot.rpartition("/")[0] not in {video.name for video in source.videos}:
        raise UsageError(f"--plot {plot}: there is no such video", f"for example {source.videos[0].name}/0")
    if submission:
        _check_submission(source, missing is not Missing.error or worst or plot or protocol or visa_compat)
    if predictions is not None:
        folder, record = predictions, dict[str, Any]()
    else:
        # The annotators' protocol merges soft masks, which are the logits.
        logits = save_logits or chosen == "annotators"
        found = _predict(source, data, begun, checkpoint, how, logits, num_gpus, progress)
        if found is None:
            return  # a share is done; the process that began scores
        folder, record = found
    if submission:
        _submit(source, folder, out or _beside(folder), progress, as_json)
        return

    from salmacli.engine.scoring.evaluator import evaluate as score

    _announce(progress)
    evaluation = score(source, folder, chosen, missing.value, record, progress)
    _report(evaluation, out or _beside(folder, chosen), worst, plot, progress, as_json)


def _protocol(benchmark: Set, protocol: str | None, visa_compat: bool) -> str | None:
    """The name of a protocol that is not the benchmark's default; None for that."""
    from salmacli.engine.scoring.protocols import PROTOCOLS, protocol_of

    if visa_compat:
        if protocol not in (None, "visa-compat") or benchmark is not Set.revos:
            raise UsageError("--visa-compat is a protocol of revos alone", "leave out --protocol, or --visa-compat")
        return "visa-compat"
    name = protocol_of(benchmark.value, protocol).name
    return None if name == next(iter(PROTOCOLS[benchmark.value])) else name


def _predict(
    source: Benchmark,
    data: Path | None,
    run: RunFolder | None,
    checkpoint: Path | None,
    settings: PredictConfig,
    save_logits: bool,
    num_gpus: int,
    progress: Progress,
) -> tuple[Path, dict[str, Any]] | None:
    """Make or complete the predictions; their folder and what the results say about where they come from.

    None in a process that only does its share.
    """
    from salmacli.engine.prediction.benchmark import plan, predict_benchmark
    from salmacli.engine.prediction.folder import refuse_failed
    from salmacli.engine.prediction.settings import assignments
    from salmacli.engine.prediction.shares import rank_of_environment, several
    from salmacli.launch import is_worker, relaunch

    job = plan(run, source, settings, checkpoint)
    if num_gpus > 1 and not is_worker():
        if several():
            raise UsageError("--num-gpus starts processes, and a launcher has started some already", "leave it out")
        words = ["--run", str(run.path)] if run is not None else ["--checkpoint", str(checkpoint)]
        words += ["--data", str(data)] if data is not None else []
        words += ["--split", source.split, *(word for text in assignments(settings) for word in ("--set", text))]
        words += ["--num-gpus", str(num_gpus), *(["--save-logits"] if save_logits else [])]
        relaunch(num_gpus, ["eval", source.name, *words])
    else:
        try:
            predict_benchmark(job, save_logits=save_logits, progress=progress)
        except SalmaError as error:
            if rank_of_environment():
                raise typer.Exit(error.exit_code) from None  # the main process says it
            raise
        except KeyboardInterrupt:
            if is_worker():
                raise typer.Exit(130) from None  # the process that began says it
            raise
    if is_worker() or rank_of_environment():
        return None
    refuse_failed(job.folder, source.name)
    return job.folder, job.origin()


def _check_out(out: Path | None, predictions: Path | None, data: Path | None) -> None:
    """Say before anything is predicted or scored that results cannot go where they are wanted."""
    if out is None:
        return
    for name, folder in (("--predictions", predictions), ("--data", data)):
        if folder is not None and (out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents):
            raise UsageError(f"--out {out} lies in {name}, where scores would be taken for data", "name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be a folder ({error.strerror})", "name another one") from None


def _check_submission(source: Benchmark, scores: object) -> None:
    """Say before anything is predicted that there is no such zip, or that it scores nothing."""
    from salmacli.engine.scoring.submission import check_server

    check_server(source)
    if scores:
        raise UsageError(
            f"{source.name} {source.split} becomes a zip for its server, which is complete and scores nothing",
            "leave out --missing, --worst, --plot, --protocol and --visa-compat",
        )


def _announce(progress: Progress) -> None:
    """Say why the first evaluation on a machine seems to stand still at its beginning."""
    from salmacli.metrics.kernels import first_time

    if first_time():
        progress.say("compiling what counts pixels: once on this machine, some ten seconds")


def _submit(source: Benchmark, folder: Path, place: Path, progress: Progress, as_json: bool) -> None:
    from salmacli.engine.scoring.submission import write_submission
    from salmacli.report.console import emit_json, result
    from salmacli.report.tables import submission_text

    path = place / f"{source.name}-{source.split}.zip"
    record = write_submission(source, folder, path, progress)
    if as_json:
        emit_json(record)
    else:
        result(submission_text(record))


def _report(
    evaluation: Evaluation, place: Path, worst: int, plot: str | None, progress: Progress, as_json: bool
) -> None:
    """Write the files, print the tables, draw the plot."""
    from salmacli.report.console import emit_json, result
    from salmacli.report.plots import scores_over_time
    from salmacli.report.tables import results_table, worst_table

    path = evaluation.write(place)
    if as_json:
        emit_json(evaluation.results)
    else:
        result(results_table(evaluation.results, evaluation.rows))
        if worst:
            result(worst_table(evaluation.rows, worst))
    progress.say(f"written: {path} and beside it {evaluation.rows_name} and per_frame as .csv and .parquet")
    if plot is not None:
        progress.say(f"written: {scores_over_time(evaluation.frames, plot, place)}")


def _beside(predictions: Path, protocol: str | None = None) -> Path:
    """Where the scores of predictions lie: never inside them, where they would be taken for a video."""
    predictions = predictions if predictions.name not in ("", "..") else predictions.resolve()
    from salmacli.engine.scoring.own_predictions import RECORD

    # A run keeps them in a folder of its own, which holds the scores, too.
    own = predictions.name == "predictions" and (predictions / RECORD).is_file()
    place = predictions.parent if own else predictions.with_name(f"{predictions.name}-scores")
    return place.with_name(f"{place.name}+{protocol}") if protocol else place
