"""``salma aggregate`` as a user calls it."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from salmacli.commands.aggregate import aggregate
from salmacli.errors import DataError, UsageError

app = typer.Typer()
app.command()(aggregate)


def call(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.fixture
def runs(tmp_path):
    for run, score, synthetic in (("a", 0.5, True), ("b", 0.625, True), ("b", 0.75, False)):
        split = "valid" if synthetic else "valid_u"
        content = {
            "schema": 1,
            "benchmark": "mevis",
            "split": split,
            "synthetic": synthetic,
            "mode": "frames",
        }
        content["scores"] = {"J": score, "F": score, "JF": score}
        content["config"] = {"cma": True, "seed": ord(run)}
        path = tmp_path / "runs" / run / "eval" / f"mevis-{split}" / "frames" / "results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    return tmp_path / "runs"


def test_a_table_and_what_is_synthetic(runs):
    found = call("--table", "--runs", runs)
    assert "62.5" in found.stdout
    assert "J&F" in found.stdout
    assert "mevis valid (synthetic): numbers of the built-in synthetic benchmark" in found.stderr
    assert "valid_u" not in found.stderr


@pytest.mark.parametrize(
    ("form", "says"),
    [("markdown", "| **62.5** |"), ("latex", "\\textbf{62.5}"), ("csv", "b,frames,0.625,0.625,0.625")],
)
def test_formats(runs, form, says):
    assert says in call("--runs", runs, "--format", form).stdout


@pytest.mark.parametrize(
    ("name", "says"),
    [("t.md", "**62.5**"), ("t.tex", "\\bottomrule"), ("t.csv", "run,mode"), ("t.txt", "62.5")],
)
def test_the_suffix_of_a_file_says_its_format(runs, tmp_path, name, says):
    found = call("--no-table", "--runs", runs, "--out", tmp_path / name)
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert says in text
    assert found.stdout == ""
    assert "\x1b" not in text


def test_json_is_one_object(runs):
    content = json.loads(call("--runs", runs, "--json").stdout)
    assert (content["schema"], content["synthetic"]) == (1, True)
    assert content["rows"][1] == {
        "run": "b",
        "mode": "frames",
        "scores": {
            "mevis valid (synthetic)": {"J": 0.625, "F": 0.625, "JF": 0.625},
            "mevis valid_u": {"J": 0.75, "F": 0.75, "JF": 0.75},
        },
    }


def test_seeds_are_grouped_on_request(runs):
    rows = json.loads(call("--runs", runs, "--group-seeds", "--json").stdout)["rows"]
    assert len(rows) == 1
    scores = rows[0]["scores"]["mevis valid (synthetic)"]
    assert scores["JF"] == pytest.approx(0.5625)
    assert scores["JF_sd"] == pytest.approx(0.125 / 2**0.5)
    assert "JF_sd" not in rows[0]["scores"]["mevis valid_u"]


def test_wrong_calls(runs, tmp_path):
    with pytest.raises(UsageError, match="nothing to do"):
        call("--no-table", "--runs", runs)
    with pytest.raises(DataError, match="salma eval mevis"):
        call("--runs", tmp_path / "nowhere")
    assert call("--runs", runs, "--format", "word").exit_code == 2
