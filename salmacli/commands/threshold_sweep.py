"""``salma threshold-sweep``: the best threshold on the mask's probability, and what choosing it is worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from salmacli.commands.options import (
    DataOption,
    FallbackOption,
    ModeOption,
    PrecisionOption,
    RunOption,
    Set,
    SettingsOption,
    SplitOption,
    prediction_settings,
    tell_run,
)

if TYPE_CHECKING:
    from salmacli.config.schema import PredictConfig
    from salmacli.data.benchmarks import Benchmark
    from salmacli.engine.progress import Progress
    from salmacli.engine.run_folder import RunFolder


def threshold_sweep(
    run: RunOption = None,
    benchmark: Annotated[Set, typer.Option(help="The benchmark.")] = Set.mevis,
    data: DataOption = None,
    split: SplitOption = None,
    mode: ModeOption = None,
    fallback: FallbackOption = None,
    precision: PrecisionOption = None,
    settings: SettingsOption = None,
    thresholds: Annotated[int, typer.Option(min=1, help="How many, evenly inside 0..1; an odd number holds 0.5.")] = 99,
    as_json: Annotated[bool, typer.Option("--json", help="Print threshold_sweep.json instead of a table.")] = False,
) -> None:
    """Score every threshold in one pass over saved mask logits, predicted first where they are missing."""
    from salmacli.engine.run_folder import RunFolder
    from salmacli.engine.scoring.counting import no_truth
    from salmacli.engine.scoring.sweep import sweep_predictions, write_sweep
    from salmacli.engine.sources import open_source
    from salmacli.metrics.threshold import even_thresholds
    from salmacli.report.console import emit_json, result
    from salmacli.report.plots import threshold_curve
    from salmacli.report.progress import TerminalProgress
    from salmacli.report.tables import sweep_table

    progress = TerminalProgress()
    how = prediction_settings(mode, fallback, precision, settings)
    chosen = RunFolder.choose(run)
    tell_run(chosen, run, progress.say)
    source = open_source(benchmark.value, data, split, progress)
    if source.synthetic:
        progress.say(f"data: the synthetic benchmark in {source.name}'s layout ({source.root}, {source.split})")
    if not source.public:
        raise no_truth(source)  # and not after all of it is predicted
    predictions = _logits(chosen, source, how, progress)
    sweep = sweep_predictions(source, predictions, even_thresholds(thresholds), progress)
    record = {**_origin(chosen, source, predictions), **sweep.record()}
    path = write_sweep(record, predictions.parent)
    curve = threshold_curve(record, path.with_suffix(".png"))
    if as_json:
        emit_json(record)
    else:
        result(sweep_table(record))
        for metric, name in (("iou", "IoU"), ("dice", "Dice")):
            result(_verdict(name, record["best"][metric]))
    progress.say(f"written: {path} and {curve}")


def _logits(run: RunFolder, source: Benchmark, settings: PredictConfig, progress: Progress) -> Path:
    """Folder of predictions with logits; torch is loaded only where they must be made."""
    from salmacli.engine.prediction.settings import label
    from salmacli.engine.scoring.sweep import has_logits

    model = run.record().get("config", {}).get("model", {})
    folder = run.eval_folder(source.name, label(settings, model)) / "predictions"
    if has_logits(source, folder, run.newest_step()):
        return folder
    progress.say("no saved logits of the newest checkpoint: predicting with --save-logits")
    from salmacli.engine.prediction.benchmark import ensure_predictions

    return ensure_predictions(run, source, settings, save_logits=True, progress=progress)[0]


def _origin(run: RunFolder, source: Benchmark, predictions: Path) -> dict[str, Any]:
    from salmacli.engine.scoring.predictions import open_predictions

    record = open_predictions(predictions).record
    return {
        "run": run.name,
        "benchmark": source.name,
        "split": source.split,
        "synthetic": source.synthetic,
        "mode": record.get("mode"),
        "settings": record.get("settings", {}),
        "checkpoint": record.get("checkpoint"),
    }


def _verdict(name: str, best: dict[str, Any]) -> str:
    text = f"best by {name}: {best['threshold']:.4g} with {100 * best['score']:.1f} % where it was chosen"
    if best["held_out"] is None:
        return f"{text}; one video alone has no held-out score"
    folds = sorted(best["fold_thresholds"])
    return (
        f"{text}; held out ({len(folds)} folds over videos, {folds[0]:.4g} to {folds[-1]:.4g}):"
        f" {100 * best['held_out']:.1f} %"
    )
