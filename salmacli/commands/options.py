"""Options that several commands have, each said once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


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


RunOption = Annotated[
    Path | None, typer.Option(help="Folder of a run, or its name below runs/; the newest one if not given.")
]
DataOption = Annotated[
    Path | None,
    typer.Option(help="The benchmark's folder in its official layout; the synthetic benchmark if not given."),
]
SplitOption = Annotated[str | None, typer.Option(help="The split; the one that people report if not given.")]
ModeOption = Annotated[Mode | None, typer.Option(help="How videos are predicted; the model's own if not given.")]
