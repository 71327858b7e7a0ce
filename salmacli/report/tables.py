"""Tables of results: scores are 0..1 in files and percent here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.console import Console, ConsoleOptions, Group
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from salmacli.engine.prediction.settings import told
from salmacli.engine.scoring.comparison import Comparison

LABELS = {"JF": "J&F", "N_acc": "N-acc", "T_acc": "T-acc", "A_rle": "A (0/1)", "R_rle": "R (0/1)"}
NONE = "–"
REASONS = {
    "no-seg": ("answer without [SEG]", "answers without [SEG]"),
    "several-seg": ("answer with several [SEG]", "answers with several [SEG]"),
    "empty": ("expression without any mask", "expressions without any mask"),
}


def percent(score: float | None) -> str:
    """A score as percent with one decimal, without the sign."""
    return NONE if score is None or pd.isna(score) else f"{100 * score:.1f}"


def _label(metric: str) -> str:
    return LABELS.get(metric, metric.replace("_", " "))


def _cells(scores: Mapping[str, Any], metrics: Iterable[str]) -> list[str]:
    return [percent(scores.get(metric)) for metric in metrics]


def _what(results: Mapping[str, Any]) -> str:
    """Benchmark, split, protocol, mode, unusual settings and a precision other than fp32 in a line."""
    what = f"{results['benchmark']} {results['split']}"
    protocol = results.get("protocol", {}).get("name", "default")
    if protocol != "default" and protocol not in what:
        what += f", {protocol}"
    if results.get("synthetic"):
        what += " (synthetic)"
    mode = [f"mode {results['mode']}"] if results.get("mode") else []
    settings = results.get("settings") or {}
    if "precision" not in settings and (results.get("resolved") or {}).get("precision", "fp32") != "fp32":
        settings = {**settings, "precision": results["resolved"]["precision"]}
    return ", ".join([what, *mode, *told(settings)])


def results_table(results: Mapping[str, Any], rows: pd.DataFrame | None = None) -> Group:
    """One evaluation: overall scores, groups, and what was counted.

    Args:
        results: The content of ``results.json``.
        rows: One row per object, where objects of sequences were scored: they are listed, too.
    """
    scores, counts = results["scores"], results["counts"]
    unit = "objects" if "objects" in counts else "expressions"
    table = Table(title=escape(f"{_what(results)}, %"), title_justify="left")
    table.add_column("")
    for metric in scores:
        table.add_column(_label(metric), justify="right")
    table.add_column(unit, justify="right")
    micro = results.get("micro")
    table.add_row("macro" if micro else "all", *_cells(scores, scores), str(counts[unit]), style="bold")
    if micro:
        table.add_row("micro", *_cells(micro, scores), str(counts[unit]))
    for group, parts in results.get("groups", {}).items():
        if group == "kind" and len(parts) == 1:
            continue
        table.add_section()
        for value, part in parts.items():
            table.add_row(escape(f"{group}: {value}"), *_cells(part, scores), str(part.get(unit, "")))
    if rows is not None and unit == "objects" and "sequence" in rows:
        table.add_section()
        for row in rows.to_dict("records"):
            table.add_row(escape(f"{row['sequence']} {row['object']}"), *_cells(row, scores), "")
    return Group(table, Text(_counted(counts)))


def worst_table(rows: pd.DataFrame, most: int) -> Table:
    """The rows with the lowest scores, lowest first.

    Args:
        rows: One per expression or object.
        most: How many are shown.
    """
    names = [c for c in ("video", "sequence", "annotator", "expression", "object", "text") if c in rows]
    metrics = [metric for metric in ("JF", "J", "F") if metric in rows]
    table = Table(title=f"the {min(most, len(rows))} worst, %", title_justify="left")
    for column in names:
        table.add_column(column, overflow="fold")
    for metric in metrics:
        table.add_column(_label(metric), justify="right")
    for column in ("frames", "missing"):
        if column in rows:
            table.add_column(column, justify="right")
    ordered = rows.sort_values(metrics[0], kind="stable", na_position="last")
    for row in ordered.head(most).to_dict("records"):
        rest = [str(row[column]) for column in ("frames", "missing") if column in row]
        told = [NONE if pd.isna(row[column]) else str(row[column]) for column in names]
        table.add_row(*map(escape, told), *_cells(row, metrics), *rest)
    return table


def submission_text(record: Mapping[str, Any]) -> str:
    """What a submission holds, and what it does not."""
    what = ", ".join(f"{record[key]} {key}" for key in ("videos", "expressions", "masks"))
    lines = [f"{record['path']}: {what}, {record['bytes'] / 1e6:.1f} MB; read back and complete"]
    if record.get("extra"):
        lines.append(f"{record['extra']} predicted masks that the benchmark does not ask for were left out")
    return "\n".join([*lines, *record.get("notes", [])])


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


@dataclass(frozen=True)
class ComparisonTable:
    """Runs against benchmarks for the terminal, best of each column in bold; as many tables as the width asks for."""

    comparison: Comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """A benchmark's columns stay together; each table holds what fits."""
        columns = self.comparison.columns()
        parts = [[n for n, (name, _) in enumerate(columns) if name == benchmark] for benchmark in dict(columns)]
        shown: list[int] = []
        for part in parts:
            fits = Measurement.get(console, options.update(width=10_000), self._table(shown + part)).maximum
            if shown and fits > options.max_width:
                yield self._table(shown)
                shown = []
            shown = shown + part
        yield self._table(shown)

    def _table(self, shown: Sequence[int]) -> Table:
        columns = [self.comparison.columns()[n] for n in shown]
        table = Table(title="%, best in bold", title_justify="left")
        height = max(len(benchmark.split()) for benchmark, _ in columns)
        for name in self.comparison.frame.index.names:
            table.add_column("\n" * height + str(name), overflow="fold")
        previous = None
        for benchmark, metric in columns:
            # The benchmark stands once, over its first column, a word a line: three of them fit 80 columns.
            words = benchmark.split() if benchmark != previous else []
            previous = benchmark
            lines = [*words, *[""] * (height - len(words)), _label(metric)]
            table.add_column(escape("\n".join(lines)), justify="right", no_wrap=True)
        for labels, cells in _rows(self.comparison, bold=lambda text: f"[bold]{text}[/bold]"):
            table.add_row(*map(escape, labels), *[cells[n] for n in shown])
        return table


def comparison_markdown(comparison: Comparison) -> str:
    """Runs against benchmarks as a Markdown table."""
    head = [*comparison.frame.index.names, *(f"{b} {_label(m)}" for b, m in comparison.columns())]
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
    under = [_latex(_label(m)) for metrics in benchmarks.values() for m in metrics]
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
    frames = "object-frames" if "objects" in counts else "expression-frames"
    parts = [f"{counts['videos']} videos", f"{counts['frames']} {frames}"]
    for reason, number in counts.get("fallbacks", {}).items():
        one, several = REASONS.get(reason, (f"fall-back ({reason})", f"fall-backs ({reason})"))
        parts.append(f"{number} {one if number == 1 else several}")
    if counts.get("empty_frames"):
        by = counts.get("fallback", "none")
        filled = "" if by == "none" else f" ({counts.get('filled_frames', 0)} filled by: {by})"
        parts.append(f"{counts['empty_frames']} expression-frames without a mask{filled}")
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
