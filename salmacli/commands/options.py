"""Options that several commands have, each said once."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salmacli.errors import UsageError

if TYPE_CHECKING:
    from salmacli.config.schema import PredictConfig
    from salmacli.engine.run_folder import RunFolder


class Set(str, Enum):
    """Benchmarks that can be evaluated."""

    davis = "davis"
    mevis = "mevis"
    revos = "revos"
    refytvos = "refytvos"
    refcoco = "refcoco"
    refcoco_plus = "refcoco+"
    refcocog = "refcocog"
    grefcoco = "grefcoco"


class Mode(str, Enum):
    """How a video is predicted."""

    frames = "frames"
    consistent = "consistent"
    sa2va = "sa2va"


class Fallback(str, Enum):
    """What takes the place of masks that a model does not give."""

    none = "none"
    previous = "previous"
    prior = "prior"
    force_seg = "force-seg"


class Precision(str, Enum):
    """In what numbers a model computes."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


PREDICTION = "Prediction"  # their panel in --help

RunOption = Annotated[
    Path | None,
    typer.Option(help="Folder of a run, or its name below runs/; the newest one if not given."),
]
CheckpointOption = Annotated[Path | None, typer.Option(help="A checkpoint instead of a run's newest.")]
DataOption = Annotated[
    Path | None,
    typer.Option(help="The benchmark's folder in its official layout; the synthetic benchmark if not given."),
]
SplitOption = Annotated[str | None, typer.Option(help="The split; the one that people report if not given.")]
ModeOption = Annotated[
    Mode | None,
    typer.Option(help="How videos are predicted; the model's own if not given.", rich_help_panel=PREDICTION),
]
FallbackOption = Annotated[
    Fallback | None,
    typer.Option(
        help="What replaces an empty mask or an answer without [SEG]; nothing if not given.",
        rich_help_panel=PREDICTION,
    ),
]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        help="Of the weights; auto if not given: bf16 where the device computes in it.", rich_help_panel=PREDICTION
    ),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other setting of prediction, e.g. window=64; repeatable. See docs/prediction.md.",
        rich_help_panel=PREDICTION,
    ),
]


def prediction_settings(
    mode: Mode | None, fallback: Fallback | None, precision: Precision | None, settings: list[str] | None
) -> PredictConfig:
    """What the four options say together.

    Raises:
        ConfigError: Settings that do not exist or do not fit.
    """
    from salmacli.config.loading import load_predict

    named = {"mode": mode, "fallback": fallback, "precision": precision}
    return load_predict(settings or (), **{name: one.value for name, one in named.items() if one is not None})


def chosen_run(run: Path | None, checkpoint: Path | None, tell: Callable[[str], object]) -> RunFolder | None:
    """The run that is named, or the newest, which is told; none where a checkpoint is named.

    Raises:
        UsageError: Both are.
        DataError: There is no such run.
    """
    from salmacli.engine.run_folder import RunFolder

    if checkpoint is None:
        chosen = RunFolder.choose(run)
        tell_run(chosen, run, tell)
        return chosen
    if run is not None:
        raise UsageError("--run and --checkpoint both name what predicts", "give one of them")
    return None


def tell_run(chosen: RunFolder, named: Path | None, tell: Callable[[str], object]) -> None:
    """Say which run it is; of several processes the one that began them says it."""
    from salmacli.launch import is_worker

    if not is_worker():
        tell(f"run: {chosen.path}" + ("" if named else " (the newest)"))
