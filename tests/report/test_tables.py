"""Tables: what they say, and that no name can break them."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from salmacli.engine.scoring.comparison import Comparison
from salmacli.report.tables import (
    ComparisonTable,
    comparison_csv,
    comparison_latex,
    comparison_markdown,
    percent,
    results_table,
    submission_text,
    sweep_table,
    worst_table,
)


def text_of(renderable, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def results(**change):
    group = {"J": 0.5, "F": 0.25, "JF": 0.375, "expressions": 4}
    return {
        "benchmark": "mevis",
        "split": "valid_u",
        "synthetic": True,
        "mode": "frames",
        "scores": {"J": 0.7124, "F": 0.8, "JF": 0.7562},
        "groups": {"category": {"motion": group}, "distractor": {"no": group}, "kind": {"referring": group}},
        "counts": {
            "videos": 3,
            "expressions": 9,
            "left_out": 0,
            "frames": 36,
            "missing": 2,
            "extra": 0,
            "fallbacks": {"no-seg": 1},
        },
        **change,
    }


def comparison(spread=False):
    frame = pd.DataFrame(
        [[0.61, 0.5, 0.555, None], [0.6, 0.52, 0.56, 0.9]],
        index=pd.MultiIndex.from_tuples([("a_b|[red]&", "frames"), ("plain", "consistent")], names=["run", "mode"]),
        columns=pd.MultiIndex.from_tuples([("mevis valid_u", m) for m in ("J", "F", "JF")] + [("davis valid", "J")]),
        dtype=float,
    )
    return Comparison(frame, frame * 0 + 0.021 if spread else None)


def test_percent():
    assert [percent(score) for score in (0.71249, 1.0, 0.0, None, float("nan"))] == [
        "71.2",
        "100.0",
        "0.0",
        "–",
        "–",
    ]


def test_fall_backs_are_told_in_words():
    fallbacks = {"empty": 12, "no-seg": 3, "several-seg": 1, "strange": 2}
    counts = {**results()["counts"], "fallbacks": fallbacks, "missing": 0}
    words = (
        "12 expressions without any mask, 3 answers without [SEG], 1 answer with several [SEG], 2 fall-backs (strange)"
    )
    assert text_of(results_table(results(counts=counts)), 200).rstrip().endswith(words)
    counted = {**counts, "fallback": "previous", "empty_frames": 288, "filled_frames": 280}
    text = text_of(results_table(results(counts=counted)), 300)
    assert f"{words}, 288 expression-frames without a mask (280 filled by: previous)" in text
    counted = {**counts, "fallback": "none", "empty_frames": 288, "filled_frames": 0}
    assert text_of(results_table(results(counts=counted)), 300).rstrip().endswith("without a mask")


def test_unusual_settings_stand_beside_the_mode():
    settings = {"fallback": "prior", "cma.temporal_prior": True}
    title = " ".join(text_of(results_table(results(settings=settings))).split())
    assert "mode frames, fallback=prior, cma.temporal_prior=true, %" in title


def test_one_evaluation():
    text = text_of(results_table(results()))
    assert "mevis valid_u (synthetic), mode frames, %" in text
    for word in ("J&F", "71.2", "75.6", "category: motion", "distractor: no", "37.5"):
        assert word in text
    assert "kind" not in text  # a single kind says nothing
    assert "3 videos, 36 expression-frames, 1 answer without [SEG], 2 missing masks" in text
    assert "synthetic" not in text_of(results_table(results(synthetic=False)))


def test_revos_columns_and_kinds():
    group = {"J": 0.5, "F": 0.25, "JF": 0.375, "A": 0.9, "expressions": 4}
    changed = results(
        scores={"J": 0.5, "F": 0.5, "JF": 0.5, "A": 0.98},
        groups={"kind": {"reasoning": group, "referring": group}},
    )
    text = text_of(results_table(changed))
    for word in (" A ", "98.0", "kind: reasoning", "90.0"):
        assert word in text


def test_label_rows_and_the_mean():
    row = {"sequence": "camel", "object": 1, "frames": 88, "J": 0.885, "F": 0.906, "JF": 0.8955, "J_decay": -0.01}
    counts = {"videos": 1, "objects": 1, "frames": 88, "missing": 0}
    changed = results(
        benchmark="davis", scores={m: row[m] for m in ("J", "F", "JF", "J_decay")}, counts=counts, groups={}
    )
    text = text_of(results_table(changed, pd.DataFrame([row])))
    for word in ("camel 1", "88 object-frames", "88.5", "-1.0", "J decay", "all"):
        assert word in text


def test_macro_and_micro_means_stand_below_each_other():
    text = text_of(results_table(results(micro={"J": 0.1, "F": 0.2, "JF": 0.15})))
    assert "macro" in text and "micro" in text and "15.0" in text


def test_the_worst_come_first_and_what_is_not_scored_last():
    rows = pd.DataFrame(
        {
            "video": ["a", "b", "c"],
            "expression": ["0", "1", "2"],
            "text": ["[red] thing", "x", "y"],
            "JF": [0.5, None, 0.25],
            "J": [0.5, None, 0.2],
            "F": [0.5, None, 0.3],
            "frames": [4, 0, 4],
            "missing": [0, 4, 0],
        }
    )
    lines = [line.split("│")[1].strip() for line in text_of(worst_table(rows, 2)).splitlines() if line.startswith("│")]
    assert lines == ["c", "a"]
    assert "[red] thing" in text_of(worst_table(rows, 20))
    assert "3 worst" in text_of(worst_table(rows, 20))


def test_a_submission_says_what_it_holds():
    record = {
        "path": "x.zip",
        "videos": 2,
        "expressions": 3,
        "masks": 12,
        "bytes": 2_500_000,
        "extra": 4,
        "notes": ["n"],
    }
    text = submission_text(record)
    assert "12 masks" in text and "2.5 MB" in text and "4 predicted masks" in text and text.endswith("n")


def test_sweep_rows_around_the_best_and_one_half():
    thresholds = [k / 10 for k in range(1, 10)]
    record = {
        "thresholds": thresholds,
        "iou": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.2],
        "dice": [0.3] * 9,
        "best": {"iou": {"threshold": 0.8}, "dice": {"threshold": 0.8}},
    }
    lines = text_of(sweep_table(record)).splitlines()
    shown = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert shown == ["0.5", "0.6", "0.7", "0.8", "0.9"]
    assert any("best IoU, best Dice" in line and "80.0" in line for line in lines)


def test_the_best_of_each_column_is_bold_where_there_is_a_choice():
    text = comparison_markdown(comparison())
    assert text.splitlines() == [
        "| run | mode | mevis valid\\_u J | mevis valid\\_u F | mevis valid\\_u J&F | davis valid J |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| a\\_b\\|[red]& | frames | **61.0** | 50.0 | 55.5 | – |",
        "| plain | consistent | 60.0 | **52.0** | **56.0** | 90.0 |",
    ]


def test_latex_is_escaped_and_complete():
    text = comparison_latex(comparison(spread=True))
    assert "\\begin{tabular}{llrrrr}" in text
    assert "\\multicolumn{3}{c}{mevis valid\\_u} & \\multicolumn{1}{c}{davis valid}" in text
    assert "\\cmidrule(lr){3-5} \\cmidrule(lr){6-6}" in text
    assert "run & mode & J & F & J\\&F & J \\\\" in text
    assert "a\\_b|[red]\\& & frames & \\textbf{61.0 $\\pm$ 2.1} & 50.0 $\\pm$ 2.1 & 55.5 $\\pm$ 2.1 & -- \\\\" in text
    for rule in ("\\toprule", "\\midrule", "\\bottomrule", "\\end{tabular}"):
        assert text.count(rule) == 1


@pytest.mark.parametrize("name", ["\\input{x}", "50%", "a~b^c", "#1$"])
def test_latex_of_names_by_strangers(name):
    one = comparison()
    one.frame.index = pd.MultiIndex.from_tuples([(name, "m"), ("b", "m")], names=["run", "mode"])
    line = comparison_latex(one).splitlines()[7]
    for character in "%$#~^":
        assert line.count(character) == line.count("\\" + character)
    assert "\\input" not in line


def test_csv_is_unrounded_and_reads_back():
    frame = pd.read_csv(io.StringIO(comparison_csv(comparison(spread=True))))
    assert list(frame.columns[:4]) == ["run", "mode", "mevis valid_u J", "mevis valid_u F"]
    assert frame["mevis valid_u JF"].tolist() == [0.555, 0.56]
    assert frame["mevis valid_u J sd"].tolist() == [0.021, 0.021]
    assert frame["run"][0] == "a_b|[red]&"


def test_rich_keeps_names_and_fits_a_terminal():
    text = text_of(ComparisonTable(comparison()), width=80)
    assert "a_b|[red]&" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    for word in ("mevis", "valid_u", "J&F", "61.0", "90.0", "–"):
        assert word in text
