"""``salma convert``: a checkpoint into another container, checked and reported."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from salmacli.errors import CheckpointError

if TYPE_CHECKING:
    from salmacli.checkpoints.export import Export


class To(str, Enum):
    """Containers that ``--to`` takes."""

    folder = "folder"
    pth = "pth"


def convert(
    file: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint folder, its ckpt.pth or model.safetensors, or an exported .pth.",
            metavar="FILE",
        ),
    ],
    to: Annotated[To, typer.Option(help="A folder with safetensors, or everything in one .pth.")] = To.folder,
    out: Annotated[
        Optional[Path],  # noqa: UP045 - Typer evaluates this on Python 3.10
        typer.Option(help="Where the result goes; by default <run>-step-<N>-salma beside the checkpoint."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and report, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Turn a checkpoint into a model-only folder or one .pth, and report its tensors."""
    if not file.exists():  # before torch is loaded: a wrong path should not take seconds
        raise CheckpointError(f"{file} is missing", "check the path; `salma train` makes checkpoints in runs/")
    from salmacli.checkpoints.export import export
    from salmacli.report.console import emit_json, result, say

    made = export(file, to.value, out, force=force, dry_run=dry_run)
    if as_json:
        emit_json(_record(made, dry_run))
        return
    say(f"found: {made.layout.value}, step {made.step} ({made.source})")
    result(_table(made))
    if dry_run:
        say(f"would write: {made.out}")
    else:
        say(f"wrote: {made.out} (read back: all {sum(row.tensors for row in made.modules)} tensors identical)")


def _record(made: Export, dry_run: bool) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "schema": 1,
        "source": str(made.source),
        "layout": made.layout.name.lower(),
        "out": str(made.out),
        "step": made.step,
        "dry_run": dry_run,
        "verified": made.verified,
        "fingerprint": made.fingerprint,
        "modules": [asdict(row) for row in made.modules],
    }


def _table(made: Export) -> Any:
    from rich.table import Table

    table = Table(caption=f"fingerprint {made.fingerprint}", caption_justify="left", show_footer=True)
    table.add_column("module", footer="all")
    columns = {
        "tensors": [row.tensors for row in made.modules],
        "parameters": [row.parameters for row in made.modules],
        "bytes": [row.bytes for row in made.modules],
    }
    for name, values in columns.items():
        table.add_column(name, justify="right", footer=f"{sum(values):,}")
    table.add_column("dtype")
    for row in made.modules:
        table.add_row(row.module, f"{row.tensors:,}", f"{row.parameters:,}", f"{row.bytes:,}", row.dtype)
    return table
