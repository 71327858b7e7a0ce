"""The parts of a model, and what a training does with them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from salmacli.engine.progress import PartRow


def parts_table(rows: Sequence[PartRow]) -> Table:
    """Parts, their parameters, how many of those train and how fast; the sum in the last line."""
    table = Table(title="what trains", title_justify="left")
    table.add_column("part")
    for column in ("parameters", "trained", "learning rate"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = (_count(row.parameters), _share(row.trained, row.parameters), _rates(row.learning_rates))
        table.add_row(row.part, *cells, style=None if row.trained else "dim")
    table.add_section()
    every, trained = sum(row.parameters for row in rows), sum(row.trained for row in rows)
    table.add_row("all", _count(every), _count(trained), "", style="bold")
    return table


def _share(trained: int, parameters: int) -> str:
    if not trained:
        return "frozen"
    return "all" if trained == parameters else _count(trained)


def _rates(rates: tuple[float, float] | None) -> str:
    if rates is None:
        return ""
    low, high = rates
    return f"{high:.3g}" if low == high else f"{low:.3g} … {high:.3g}"


def _count(number: int) -> str:
    """One decimal and a unit: 453,820 → 453.8 K."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return str(number)
