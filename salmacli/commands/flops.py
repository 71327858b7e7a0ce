"""``salma flops``: what each part of the model costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from salmacli.engine.flops import Cost
    from salmacli.models.salma import Salma

_MBA = ("visual pre-pass", "CMA", "CMA in the mask decoder")


def flops(
    preset: Annotated[str, typer.Option(help="A preset's name or a YAML file; counted with CMA.")] = "tiny",
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045 - Typer evaluates this on Python 3.10
        typer.Option(help="Count the model of this checkpoint instead."),
    ] = None,
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="A.B=VALUE", help="Change the preset, e.g. model.cma.levels=[16,8]; repeatable."),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Length of the video.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Count the floating-point operations of every part, for one expression in one video."""
    from salmacli.engine.flops import measure
    from salmacli.errors import UsageError
    from salmacli.report.console import emit_json, result, say

    if checkpoint is not None and settings:
        raise UsageError("--set changes a preset, and a checkpoint is what it is", "leave one of them out")
    model = _model(preset, checkpoint, settings or [])
    mode = model.config.inference_mode
    costs = measure(model, frames)
    name = str(checkpoint or preset)
    if as_json:
        emit_json(_record(name, mode, frames, costs))
        return
    say(f"{name}, mode {mode}: one expression in {frames} frames; 2 operations per multiply-accumulate")
    result(_table(costs, frames))
    extra = sum(cost.total for cost in costs if cost.part in _MBA)
    if extra:
        result(f"CMA with its visual pre-pass: {extra / sum(cost.total for cost in costs):.2%} of the whole")


def _model(preset: str, checkpoint: Path | None, settings: list[str]) -> Salma:
    """Of shapes alone: weights are neither made nor read."""
    if checkpoint is not None:
        from salmacli.checkpoints.load import build_model, read_contents

        place, _, contents = read_contents(checkpoint)
        return build_model(contents, place)
    from salmacli.checkpoints.empty import empty_model
    from salmacli.config.loading import load_config
    from salmacli.engine.flops import EXPRESSION
    from salmacli.models.mllm import chat_of
    from salmacli.models.tokenizer import build_tokenizer

    config = load_config(preset, ["model.cma.enabled=true", *settings]).model
    return empty_model(config, build_tokenizer([EXPRESSION], config.mllm.vocabulary, chat_of(config.mllm)))


def _record(name: str, mode: str, frames: int, costs: list[Cost]) -> dict[str, Any]:
    from dataclasses import asdict

    whole = sum(cost.total for cost in costs)
    return {
        "schema": 1,
        "model": name,
        "mode": mode,
        "frames": frames,
        "expressions": 1,
        "convention": "2 per multiply-accumulate",
        "parts": [{**asdict(cost), "total": cost.total, "share": cost.total / whole} for cost in costs],
        "total": whole,
        "per_frame": whole / frames,
        "mba_share": sum(cost.total for cost in costs if cost.part in _MBA) / whole,
    }


def _table(costs: list[Cost], frames: int) -> Any:
    from rich.table import Table

    whole = sum(cost.total for cost in costs)
    table = Table(show_footer=True)
    table.add_column("part", footer="all")
    table.add_column("one run serves", footer="")
    table.add_column("GFLOP a run", justify="right")
    table.add_column("runs", justify="right")
    table.add_column("GFLOP", justify="right", footer=f"{whole / 1e9:,.3f}")
    table.add_column("a frame", justify="right", footer=f"{whole / frames / 1e9:,.3f}")
    table.add_column("share", justify="right", footer="100.0 %")
    for cost in costs:
        table.add_row(
            cost.part,
            f"a {cost.unit}" if cost.unit != "expression" else "an expression",
            f"{cost.flops / 1e9:,.4f}",
            str(cost.runs),
            f"{cost.total / 1e9:,.3f}",
            f"{cost.total / frames / 1e9:,.3f}",
            f"{cost.total / whole:.1%}".replace("%", " %"),
        )
    return table
