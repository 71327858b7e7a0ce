"""Tables of results: scores are 0..1 in files and percent here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from salmacli.engine.comparison import Comparison
from salmacli.engine.label_folders import LabelScores

LABELS = {"JF": "J&F"}
NONE = "–"


def percent(score: float | None) -> str:
    """A score as percent with one decimal, without the sign."""
    return NONE if score is None or pd.isna(score) else f"{100 * score:.1f}"


def results_table(results: Mapping[str, Any]) -> Group:
    """One evaluation: overall scores, groups, and what was counted.

    Args:
        results: The content of ``results.json``.
    """
    scores = results["scores"]
    where = f"{results['benchmark']} {results['split']}" + (" (synthetic)" if results.get("synthetic") else "")
    title = f"{where}, mode {results['mode']}, %" if results.get("mode") else f"{where}, %"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("")
    for metric in scores:
        table.add_column(LABELS.get(metric, metric), justify="right")
    table.add_column("expressions", justify="right")
    counts = results["counts"]
    table.add_row("all", *[percent(value) for value in scores.values()], str(counts["expressions"]), style="bold")
    for group, parts in results.get("groups", {}).items():
        if group == "kind" and len(parts) == 1:
            continue
        table.add_section()
        for value, part in parts.items():
            cells = [percent(part.get(metric)) for metric in scores]
            table.add_row(escape(f"{group}: {value}"), *cells, str(part["expressions"]))
    return Group(table, Text(_counted(counts)))


def label_table(found: LabelScores) -> Table:
    """Scores of label folders, one row per sequence and object."""
    rows, scores = found.rows, found.scores
    table = Table(title="label pictures, first and last frame not scored, %", title_justify="left")
    for column in ("sequence", "object"):
        table.add_column(column)
    table.add_column("frames", justify="right")
    for metric in scores:
        table.add_column(LABELS.get(metric, metric.replace("_", " ")), justify="right")
    for row in rows:
        cells = [percent(row[metric]) for metric in scores]
        table.add_row(escape(row["sequence"]), str(row["object"]), str(row["frames"]), *cells)
    table.add_section()
    frames = str(sum(row["frames"] for row in rows))
    table.add_row("all", str(len(rows)), frames, *[percent(value) for value in scores.values()], style="bold")
    return table


def sweep_table(record: Mapping[str, Any], around: int = 2) -> Table:
    """A threshold sweep: the rows around both best thresholds, and 0.5."""
    thresholds = record["thresholds"]
    best = {metric: thresholds.index(record["best"][metric]["threshold"]) for metric in ("iou", "dice")}
    half = min(range(len(thresholds)), key=lambda k: abs(thresholds[k] - 0.5))
    near = {k for b in best.values() for k in range(b - around, b + around + 1)} | {half}
    table = Table(title="thresholds, %", title_justify="left")
    for column in ("threshold", "IoU", "Dice", ""):
        table.add_column(column, justify="left" if column == "" else "right")
    for k in sorted(k for k in near if 0 <= k < len(thresholds)):
        marks = [f"best {name}" for name, metric in (("IoU", "iou"), ("Dice", "dice")) if best[metric] == k]
        cells = (
            f"{thresholds[k]:.4g}",
            percent(record["iou"][k]),
            percent(record["dice"][k]),
            ", ".join(marks),
        )
        table.add_row(*cells, style="bold" if marks else None)
    return table


def comparison_rich(comparison: Comparison) -> Table:
    """Runs against benchmarks for the terminal, best of each column in bold."""
    table = Table(title="%, best in bold", title_justify="left")
    height = max(len(benchmark.split()) for benchmark, _ in comparison.columns())
    for name in comparison.frame.index.names:
        table.add_column("\n" * height + str(name), overflow="fold")
    previous = None
    for benchmark, metric in comparison.columns():
        # The benchmark stands once, over its first column, a word a line: three of them fit 80 columns.
        words = benchmark.split() if benchmark != previous else []
        previous = benchmark
        lines = [*words, *[""] * (height - len(words)), LABELS.get(metric, metric)]
        table.add_column(escape("\n".join(lines)), justify="right", no_wrap=True)
    for labels, cells in _rows(comparison, bold=lambda text: f"[bold]{text}[/bold]"):
        table.add_row(*map(escape, labels), *cells)
    return table


def comparison_markdown(comparison: Comparison) -> str:
    """Runs against benchmarks as a Markdown table."""
    head = [*comparison.frame.index.names, *(f"{b} {LABELS.get(m, m)}" for b, m in comparison.columns())]
    rule = ["---"] * comparison.frame.index.nlevels + ["---:"] * comparison.frame.shape[1]
    lines = [[_markdown(str(cell)) for cell in head], rule]
    for labels, cells in _rows(comparison, bold=lambda text: f"**{text}**"):
        lines.append([*map(_markdown, labels), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def comparison_latex(comparison: Comparison) -> str:
    """Runs against benchmarks as a LaTeX table in the style of ``booktabs``."""
    benchmarks: dict[str, list[str]] = {}
    for benchmark, metric in comparison.columns():
        benchmarks.setdefault(benchmark, []).append(metric)
    levels = comparison.frame.index.nlevels
    over = [f"\\multicolumn{{{len(metrics)}}}{{c}}{{{_latex(b)}}}" for b, metrics in benchmarks.items()]
    rules, start = [], levels + 1
    for metrics in benchmarks.values():
        rules.append(f"\\cmidrule(lr){{{start}-{start + len(metrics) - 1}}}")
        start += len(metrics)
    under = [_latex(LABELS.get(m, m)) for metrics in benchmarks.values() for m in metrics]
    names = [_latex(str(name)) for name in comparison.frame.index.names]
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{'l' * levels}{'r' * len(under)}}}",
        "\\toprule",
        " & ".join([""] * levels + over).strip() + " \\\\",
        " ".join(rules),
        " & ".join(names + under) + " \\\\",
        "\\midrule",
    ]
    for labels, cells in _rows(comparison, bold=lambda text: f"\\textbf{{{text}}}"):
        texts = [cell.replace("±", "$\\pm$").replace(NONE, "--") for cell in cells]
        lines.append(" & ".join([*map(_latex, labels), *texts]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def comparison_csv(comparison: Comparison) -> str:
    """Runs against benchmarks as CSV, scores in 0..1 and unrounded."""
    frame = comparison.frame.copy()
    frame.columns = pd.Index([f"{benchmark} {metric}" for benchmark, metric in frame.columns])
    if comparison.spread is not None:
        for position, (benchmark, metric) in enumerate(comparison.columns()):
            frame[f"{benchmark} {metric} sd"] = comparison.spread.iloc[:, position]
    return str(frame.reset_index().to_csv(index=False, lineterminator="\n"))


def _rows(comparison: Comparison, bold: Callable[[str], str]) -> list[tuple[list[str], list[str]]]:
    """Row labels and cells, the best cells passed through ``bold``."""
    best = comparison.best()
    rows = []
    for row, labels in enumerate(comparison.frame.index):
        texts = [_cell(comparison, row, column) for column in range(comparison.frame.shape[1])]
        marked = [bold(text) if best.iat[row, column] else text for column, text in enumerate(texts)]
        rows.append(([str(label) for label in (labels if isinstance(labels, tuple) else (labels,))], marked))
    return rows


def _cell(comparison: Comparison, row: int, column: int) -> str:
    """A score in percent, with its spread where there is one."""
    text = percent(comparison.frame.iat[row, column])
    spread = None if comparison.spread is None else comparison.spread.iat[row, column]
    return text if spread is None or pd.isna(spread) else f"{text} ± {percent(spread)}"


def _counted(counts: Mapping[str, Any]) -> str:
    parts = [f"{counts['videos']} videos", f"{counts['frames']} expression-frames"]
    for reason, number in counts.get("fallbacks", {}).items():
        parts.append(f"{number} fall-backs ({reason})")
    for key, words in (
        ("missing", "missing masks"),
        ("extra", "masks nobody asked for"),
        ("left_out", "left out"),
    ):
        if counts.get(key):
            parts.append(f"{counts[key]} {words}")
    return ", ".join(parts)


def _markdown(text: str) -> str:
    """Names are strangers' words: nothing in them may break the table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("\n", " ")


_LATEX = {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
