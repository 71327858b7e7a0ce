"""``salma convert``: any layout → SALMA's, compared with its base, checked and reported."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from salmacli.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from salmacli.checkpoints.convert import Conversion


class To(str, Enum):
    """Forms that ``--to`` takes."""

    folder = "folder"
    pth = "pth"
    sa2va = "sa2va"


class Dtype(str, Enum):
    """Types that ``--dtype`` takes."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


def convert(
    file: Annotated[
        Path,
        typer.Argument(
            help="A model or a training file of any layout: Sa2VA (released, .pth, DeepSpeed), InternVL, SAM 2, SALMA; "
            "a path or a hub id.",
            metavar="FILE",
        ),
    ],
    to: Annotated[
        To, typer.Option(help="SALMA's folder with safetensors, everything in one .pth, or the released Sa2VA layout.")
    ] = To.folder,
    out: Annotated[
        Optional[Path],  # noqa: UP045 - Typer evaluates this on Python 3.10
        typer.Option(help="Where the result goes; by default <name>-salma beside FILE."),
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(
            help="What FILE was trained on, or a part it lacks, such as a SAM 2 with its own mask decoder: a hub id or "
            "path; repeatable."
        ),
    ] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="LoRA's alpha, which no training file holds.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="The training's configuration (.py, never run, .yaml, .json) that states alpha.")
    ] = None,
    sam2_config: Annotated[
        str | None, typer.Option(help="Name or file of SAM 2's configuration, where it has no released size.")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Store all weights in this type; as they are if not given.")
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write only what was trained, LoRA in PEFT's format, and name the base.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and report, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Turn a model or a training file of any layout into SALMA's, and report what changed against its base."""
    # Before torch is loaded: a wrong path should not take seconds. Two words with a slash may be a hub id.
    if not file.exists() and (file.suffix in (".pth", ".pt", ".bin", ".safetensors") or len(file.parts) != 2):
        raise CheckpointError(f"{file} is missing", "check the path; `salma train` makes checkpoints in runs/")
    if adapter and to is not To.folder:
        raise UsageError(f"--adapter writes a folder of its own kind, --to {to.value} another", "leave one of them out")
    import torch

    from salmacli.checkpoints.assemble import Recipe
    from salmacli.checkpoints.convert import convert as convert_file
    from salmacli.report.console import emit_json, result, say

    types = {Dtype.bf16: torch.bfloat16, Dtype.fp16: torch.float16, Dtype.fp32: torch.float32}
    recipe = Recipe(tuple(base or ()), lora_alpha, config, sam2_config, types[dtype] if dtype else None)
    made = convert_file(str(file), recipe, "adapter" if adapter else to.value, out, force=force, dry_run=dry_run)
    if as_json:
        emit_json(_record(made, dry_run))
        return
    say(f"found: {made.layout.value}, step {made.step} ({made.source})")
    for role, record in _origins(made):
        hashes = ", ".join(f"{digest[:12]}…" for digest in record["files"].values())
        say(f"{role}: {record['name']} (sha256 {hashes})")
    for note in made.notes:
        say(f"note: {note}")
    result(_table(made))
    if dry_run:
        say(f"would write: {made.out}")
    else:
        say(f"wrote: {made.out} (read back: all {sum(row.tensors for row in made.modules)} tensors identical)")


def _origins(made: Conversion) -> list[tuple[str, Any]]:
    """What the model is made of, and as what."""
    trained = made.provenance.get("trained")
    sources = [("base" if trained else "source", record) for record in made.provenance.get("sources", ())]
    return [*([("trained", trained)] if trained else []), *sources]


def _record(made: Conversion, dry_run: bool) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "schema": 2,
        "source": str(made.source),
        "layout": made.layout.name.lower(),
        "out": str(made.out),
        "step": made.step,
        "dry_run": dry_run,
        "verified": made.verified,
        "fingerprint": made.fingerprint,
        "provenance": dict(made.provenance),
        "files": dict(made.hashes),
        "notes": list(made.notes),
        "modules": [asdict(row) for row in made.modules],
    }


def _table(made: Conversion) -> Any:
    from rich.table import Table

    compared = any(row.changed is not None for row in made.modules)
    table = Table(caption=f"fingerprint {made.fingerprint}", caption_justify="left", show_footer=True)
    table.add_column("module", footer="all")
    columns = ["tensors", "changed", "new"] if compared else ["tensors"]
    for name in [*columns, "parameters", "bytes"]:
        total = sum(getattr(row, name) for row in made.modules)
        table.add_column(name, justify="right", footer=f"{total:,}")
    if compared:
        table.add_column("‖Δ‖/‖base‖, median", justify="right")
        table.add_column("most", justify="right")
    table.add_column("dtype")
    for row in made.modules:
        counts = [f"{getattr(row, name):,}" for name in [*columns, "parameters", "bytes"]]
        shares = [_share(row.change), _share(row.most)] if compared else []
        table.add_row(row.module, *counts, *shares, row.dtype)
    return table


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}" if value < 1e-3 else f"{value:.1%}"
