"""``salma train``: config and data checked, one process per device, a checkpoint, a table and a curve."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from salmacli.config.schema import RunConfig
    from salmacli.data.benchmarks import Benchmark
    from salmacli.engine.progress import Progress
    from salmacli.engine.run_folder import RunFolder
    from salmacli.engine.training.trainer import TrainingResult

_STOPPED = 130


def train(
    preset: Annotated[str, typer.Option(help="A shipped preset, or the path of a YAML file.")] = "tiny",
    cma: Annotated[
        Optional[bool],  # noqa: UP045 - Typer evaluates this on Python 3.10
        typer.Option("--cma/--no-cma", help="Mask-biased cross-modal attention; the preset's choice if not given."),
    ] = None,
    topk: Annotated[Optional[int], typer.Option(help="Language tokens that the attention keeps.")] = None,  # noqa: UP045
    mba: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="How the mask prior acts: gate, bias or off."),
    ] = None,
    steps: Annotated[Optional[int], typer.Option(help="Optimiser steps.")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(help="Of data order and initial weights.")] = None,  # noqa: UP045
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--set", metavar="A.B=VALUE", help="Any other setting, e.g. train.learning_rate=1e-4; repeatable."
        ),
    ] = None,
    name: Annotated[Optional[str], typer.Option(help="Name of the run's folder below runs/.")] = None,  # noqa: UP045
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the newest run, or with --name, from its last checkpoint."),
    ] = False,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder that holds the sets in the predecessor's layout; data.root of the settings."),
    ] = None,
    num_gpus: Annotated[int, typer.Option(help="Processes, one per device.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> int:
    """Train a model; without options, the tiny preset on the synthetic benchmark."""
    from salmacli.engine.prediction.shares import rank_of_environment
    from salmacli.engine.progress import Silent
    from salmacli.engine.sources import describe, open_mix
    from salmacli.launch import is_worker, relaunch
    from salmacli.report.progress import TerminalProgress

    options = {"cma.enabled": cma, "cma.topk": topk, "cma.mba": mba}
    assignments = [f"model.{key}={_yaml(value)}" for key, value in options.items() if value is not None]
    assignments += [f"train.steps={steps}"] if steps is not None else []
    assignments += [f"seed={seed}"] if seed is not None else []
    assignments += [f"data.root={data}"] if data is not None else []
    assignments += settings or []
    run, config = _resumed(name, preset, assignments) if resume else (None, _fresh(preset, assignments))
    _check_options(config, topk, mba, num_gpus)
    progress: Progress = TerminalProgress() if rank_of_environment() == 0 else Silent()
    mix = open_mix(config.data, config.model, config.seed, progress)
    benchmark = _validation(config, progress)
    read = describe(mix.sources)
    if run is None:
        run = _new_run(config, name, _name(preset, config), read)
        progress.say(f"run: {run.path}")
    else:
        _check_data(run, read)
    if num_gpus != 1 and not is_worker():
        relaunch(num_gpus, ["train", "--resume", "--name", run.name, *(["--json"] if as_json else [])])
        return 0

    from salmacli.engine.training.trainer import Trainer

    with run.locked(rank_of_environment() == 0):
        trainer = Trainer(config, mix, run, progress, benchmark)
        checkpoints = run.checkpoints()
        outcome = trainer.fit(checkpoints[-1] if checkpoints else None)
    if trainer.main:
        _report(run, config, outcome, as_json)
    # Whoever started workers knows that it was interrupted; torchrun would call any other number a failure.
    return _STOPPED if outcome.ended == "interrupted" and not is_worker() else 0


def _fresh(preset: str, assignments: list[str]) -> RunConfig:
    from salmacli.config.loading import load_config

    return load_config(preset, assignments)


def _resumed(name: str | None, preset: str, assignments: list[str]) -> tuple[RunFolder, RunConfig]:
    """The run to go on with and its own config: another one would make it another run."""
    from salmacli.config.loading import validate
    from salmacli.config.schema import RunConfig
    from salmacli.engine.run_folder import RUNS, RunFolder
    from salmacli.errors import UsageError

    if assignments or preset != "tiny":
        raise UsageError(
            "--resume goes on with the run's own settings", "leave the other options out, or start a new run"
        )
    run = RunFolder(RUNS / name) if name else RunFolder.newest()
    return run, validate(run.record().get("config", {}), RunConfig, "use the SALMA version that made the run")


def _check_options(config: RunConfig, topk: int | None, mba: str | None, num_gpus: int) -> None:
    """Refuse, before there is a run, what would have no effect or could not begin."""
    from salmacli.engine.prediction.shares import several
    from salmacli.errors import UsageError
    from salmacli.launch import check_count

    check_count(num_gpus)
    cma = config.model.cma
    for option, value in (("--topk", topk), ("--mba", mba)):
        if value is not None and not cma.enabled:
            raise UsageError(f"{option} is of the attention, which is off", "add --cma")
    if topk is not None and cma.pooling in ("mean", "cls"):
        raise UsageError(f"--topk chooses among tokens, and model.cma.pooling={cma.pooling} leaves one", "leave it out")
    train = config.train
    if train.sharding != "none" or train.trackers or train.quantize:
        from salmacli.engine.training.devices import check_devices, check_packages

        check_packages(train)
        check_devices(train, int(os.environ["WORLD_SIZE"]) if several() else num_gpus)


def _validation(config: RunConfig, progress: Progress) -> Benchmark | None:
    """What training is to look at; None where it is not to."""
    from salmacli.engine.sources import open_source

    look = config.train.validation
    return open_source(look.set, look.root, look.split, progress) if look.every is not None else None


def _check_data(run: RunFolder, data: list[dict[str, Any]]) -> None:
    """A run goes on with the data it began with."""
    from salmacli.errors import DataError

    for then, now in zip(run.record().get("data", []), data, strict=True):
        if then["sha256"] != now["sha256"]:
            raise DataError(
                f"{now['root']} is not what {run.path} was trained on: its videos or expressions changed",
                "put the old data back, or start a new run",
            )


def _new_run(config: RunConfig, name: str | None, otherwise: str, data: list[dict[str, Any]]) -> RunFolder:
    """A new run; of several processes that a launcher started, the first makes it and the others wait for it."""
    from salmacli.engine.prediction.shares import rank_of_environment, several
    from salmacli.engine.run_folder import RUNS, RunFolder, launch, provenance
    from salmacli.errors import UsageError

    if several() and name is None:
        raise UsageError("processes that a launcher starts must agree on the run's folder", "give it a --name")
    if rank_of_environment() > 0:
        return RunFolder.met(RUNS, name or otherwise)
    record = {
        "schema": 1,
        "command": ["salma", *sys.argv[1:]],
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "launch": launch(),
        "data": data,
        **provenance(),
    }
    return RunFolder.create(RUNS, name or otherwise, record)


def _name(preset: str, config: RunConfig) -> str:
    """What a person recognises: preset, attention, seed, time."""
    from datetime import datetime

    cma = config.model.cma
    what = f"cma-{cma.mba}-k{cma.topk or 'all'}" if cma.enabled else "no-cma"
    return f"{Path(preset).stem}-{what}-seed{config.seed}-{datetime.now():%Y%m%d-%H%M%S}"


def _report(run: RunFolder, config: RunConfig, outcome: TrainingResult, as_json: bool) -> None:
    from rich.table import Table

    from salmacli.report.console import emit_json, result, say
    from salmacli.report.plots import training_curve

    curve = training_curve(run.metrics_path, run.path / "curve.png") if run.metrics_path.exists() else None
    best = {"step": outcome.best[0], "JF": outcome.best[1]} if outcome.best else None
    record = {
        "run": str(run.path),
        "step": outcome.step,
        "steps": config.train.steps,
        "ended": outcome.ended,
        "seconds": round(outcome.seconds, 1),
        "losses": outcome.losses,
        "bad_samples": outcome.bad,
        "left_out": outcome.left_out,
        "validation": best,
        "checkpoint": str(outcome.checkpoint),
        "curve": str(curve) if curve else None,
    }
    if as_json:
        emit_json(record)
    else:
        table = Table(
            title=f"{run.name}: step {outcome.step} of {config.train.steps}",
            show_header=False,
            title_justify="left",
        )
        rows = {
            "time": f"{outcome.seconds / 60:.1f} min",
            "losses": "  ".join(f"{name} {value:.3f}" for name, value in outcome.losses.items()),
            "samples dropped": str(outcome.bad),
            "objects left out": f"{outcome.left_out} (data.max_tokens)" if outcome.left_out else None,
            "best validation": f"J&F {100 * best['JF']:.1f} at step {best['step']}" if best else None,
            "checkpoint": str(outcome.checkpoint),
            "curve": str(curve),
        }
        for key, value in rows.items():
            if value is not None:
                table.add_row(key, value)
        result(table)
    told = {
        "interrupted": f"stopped; go on with: salma train --resume --name {run.name}",
        "no better": "stopped: validation got no better (train.validation.patience); next: salma eval mevis",
        "finished": "next: salma eval mevis",
    }
    say(told[outcome.ended])


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
