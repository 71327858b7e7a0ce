"""``salma aggregate``: one table over runs and benchmarks."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from salmacli.errors import UsageError

if TYPE_CHECKING:
    from salmacli.engine.scoring.comparison import Comparison, Result


class Format(str, Enum):
    """How the table is written."""

    rich = "rich"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"


_SUFFIXES = {".md": Format.markdown, ".tex": Format.latex, ".csv": Format.csv}


def aggregate(
    table: Annotated[bool, typer.Option("--table/--no-table", help="Print the table.")] = True,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    form: Annotated[
        Optional[Format],  # noqa: UP045 - Typer evaluates this on Python 3.10
        typer.Option("--format", help="By default what the suffix of --out says, else rich."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also write the table to this file."),
    ] = None,
    group_seeds: Annotated[
        bool, typer.Option(help="Make runs that differ only in the seed one row, mean ± sd.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Compare runs: rows are runs and inference modes, columns the benchmarks' J, F and J&F."""
    from salmacli.config.files import write_atomic
    from salmacli.engine.scoring.comparison import compare, mixed_protocols, read_results
    from salmacli.report.console import emit_json, result, say

    if not (table or out or as_json):
        raise UsageError("--no-table leaves nothing to do", "add --out FILE or --json")
    results = read_results(runs)
    comparison = compare(results, group_seeds)
    form = form or (_SUFFIXES.get(out.suffix.lower()) if out else None) or Format.rich
    for column in sorted({found.column for found in results if found.content["synthetic"]}):
        say(f"{column}: numbers of the built-in synthetic benchmark, not of the real one")
    for column in mixed_protocols(results):
        say(f"{column}: scored by different rules, not comparable; see protocol in results.json")
    if out:
        write_atomic(out, _text(comparison, form).rstrip("\n") + "\n")
        say(f"wrote {out}")
    if as_json:
        emit_json(_record(results, comparison))
    elif table:
        result(_rich(comparison) if form is Format.rich else _text(comparison, form).rstrip("\n"))


def _rich(comparison: Comparison) -> Any:
    from salmacli.report.tables import ComparisonTable

    return ComparisonTable(comparison)


def _text(comparison: Comparison, form: Format) -> str:
    from salmacli.report import tables

    if form is Format.rich:
        from io import StringIO

        from rich.console import Console

        buffer = StringIO()
        Console(file=buffer, width=200).print(tables.ComparisonTable(comparison))
        return buffer.getvalue()
    writers = {
        Format.markdown: tables.comparison_markdown,
        Format.latex: tables.comparison_latex,
        Format.csv: tables.comparison_csv,
    }
    return writers[form](comparison)


def _record(results: list[Result], comparison: Comparison) -> dict[str, Any]:
    import pandas as pd

    rows = []
    for position, (run, mode) in enumerate(comparison.frame.index):
        scores: dict[str, dict[str, float]] = {}
        for place, (column, metric) in enumerate(comparison.columns()):
            for frame, key in ((comparison.frame, metric), (comparison.spread, f"{metric}_sd")):
                if frame is not None and not pd.isna(frame.iat[position, place]):
                    scores.setdefault(column, {})[key] = float(frame.iat[position, place])
        rows.append({"run": run, "mode": mode, "scores": scores})
    return {"schema": 1, "synthetic": any(found.content["synthetic"] for found in results), "rows": rows}
