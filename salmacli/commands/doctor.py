"""``salma doctor``: what would stop a training, a prediction or an evaluation, before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from salmacli.commands.options import (
    CheckpointOption,
    DataOption,
    ModeOption,
    PrecisionOption,
    RunOption,
    Set,
    SettingsOption,
    SplitOption,
    chosen_run,
    prediction_settings,
)
from salmacli.errors import SalmaError

if TYPE_CHECKING:
    from salmacli.engine.doctor.checks import Report

app = typer.Typer(help="Check settings, data, models and this machine before a command runs.", no_args_is_help=True)
_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
_STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}
_SETTINGS = "settings"


@app.command()
def train(
    preset: Annotated[str, typer.Option(help="A shipped preset, or the path of a YAML file.")] = "tiny",
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045 - Typer evaluates this on Python 3.10
        typer.Option("--set", metavar="A.B=VALUE", help="Any other setting, as for salma train; repeatable."),
    ] = None,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder that holds the sets in the predecessor's layout; data.root of the settings."),
    ] = None,
    num_gpus: Annotated[int, typer.Option(min=1, help="Processes that the training is to have.")] = 1,
    as_json: _JSON = False,
) -> int:
    """Check what salma train needs; nothing is trained, fetched or written."""
    from salmacli.config.loading import load_config

    assignments = [f"data.root={data}"] if data is not None else []
    try:
        config = load_config(preset, [*assignments, *(settings or [])])
    except SalmaError as error:
        return _refused("train", error, as_json)
    from salmacli.engine.doctor.training import examine_training

    return _told("train", examine_training(config, num_gpus), as_json)


@app.command()
def predict(
    source: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="[FRAMES_OR_VIDEO]", help="A folder of frames, a video or a picture."),
    ] = None,
    run: RunOption = None,
    checkpoint: CheckpointOption = None,
    mode: ModeOption = None,
    precision: PrecisionOption = None,
    settings: SettingsOption = None,
    as_json: _JSON = False,
) -> int:
    """Check what salma predict needs; nothing is predicted."""
    try:
        how = prediction_settings(mode, None, precision, settings)
        place = _checkpoint(run, checkpoint)
    except SalmaError as error:
        return _refused("predict", error, as_json)
    from salmacli.data.frames import frames_of
    from salmacli.engine.doctor.prediction import examine_frames, examine_prediction

    looks = [] if source is None else [examine_frames(lambda: frames_of(source))]
    return _told("predict", examine_prediction(place, how, looks), as_json)


@app.command("eval")
def evaluate(
    benchmark: Annotated[Set, typer.Argument(help="The benchmark.")] = Set.mevis,
    run: RunOption = None,
    checkpoint: CheckpointOption = None,
    data: DataOption = None,
    split: SplitOption = None,
    mode: ModeOption = None,
    precision: PrecisionOption = None,
    settings: SettingsOption = None,
    as_json: _JSON = False,
) -> int:
    """Check what salma eval needs; nothing is predicted or scored."""
    try:
        how = prediction_settings(mode, None, precision, settings)
        place = _checkpoint(run, checkpoint)
    except SalmaError as error:
        return _refused("eval", error, as_json)
    from salmacli.engine.doctor.prediction import examine_benchmark, examine_prediction

    return _told("eval", examine_prediction(place, how, [examine_benchmark(benchmark.value, data, split)]), as_json)


def _checkpoint(run: Path | None, checkpoint: Path | None) -> Path:
    from salmacli.report.console import say

    chosen = chosen_run(run, checkpoint, say)
    return chosen.newest_checkpoint() if chosen is not None else checkpoint or Path()


def _refused(command: str, error: SalmaError, as_json: bool) -> int:
    """Settings that cannot be read: there is nothing more to check."""
    from salmacli.engine.doctor.checks import Report, fault

    return _told(command, Report((fault(_SETTINGS, error),)), as_json)


def _told(command: str, report: Report, as_json: bool) -> int:
    from dataclasses import asdict

    from salmacli.report.console import emit_json, result, say

    if as_json:
        emit_json({"schema": 1, "command": command, **asdict(report), "exit_code": report.exit_code})
        return report.exit_code
    if report.parts:
        result(_parts(report))
    if report.memory is not None:
        result(_memory(report))
    result(_checks(report))
    counts = {state: sum(check.state == state for check in report.checks) for state in ("fault", "warning")}
    say(", ".join(f"{number} {state}{'s' * (number != 1)}" for state, number in counts.items()))
    return report.exit_code


def _checks(report: Report) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="checks", title_justify="left")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in report.checks:
        # As text, because paths and messages may look like markup.
        table.add_row(Text(check.state, _STYLES[check.state]), Text(check.name), Text(check.found), Text(check.mend))
    return table


def _parts(report: Report) -> Any:
    from rich.table import Table

    table = Table(title="what trains", title_justify="left")
    for column in ("part", "parameters", "train", "learning rate"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for row in report.parts:
        low, high = row.learning_rates or (0.0, 0.0)
        rate = "" if row.learning_rates is None else f"{high:g}" if low == high else f"{low:g} – {high:g}"
        table.add_row(row.part, f"{row.parameters:,}", f"{row.trained:,}" if row.trained else "", rate)
    return table


def _memory(report: Report) -> Any:
    from rich.table import Table

    from salmacli.engine.doctor.checks import size

    memory = report.memory
    assert memory is not None
    table = Table(title="memory per device", title_justify="left")
    table.add_column("of")
    table.add_column("", justify="right")
    rows = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimizer,
        "moving average": memory.average,
        **memory.activations,
        "what comes and goes": memory.passing,
    }
    for name, count in rows.items():
        if count:
            table.add_row(name, size(count))
    table.add_section()
    table.add_row("at one time", size(memory.peak))
    return table
