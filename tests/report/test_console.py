from __future__ import annotations

import json

import pytest
from rich.table import Table

from salmacli.report.console import emit_json, result, say
from salmacli.report.progress import TerminalProgress


def test_results_and_hints_take_different_ways(capsys: pytest.CaptureFixture[str]) -> None:
    say("a hint [not markup]")
    result("a result [0.5]")
    out, err = capsys.readouterr()
    assert (out, err) == ("a result [0.5]\n", "a hint [not markup]\n")


def test_json_is_one_object_and_knows_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"ä": [1, None]})
    assert json.loads(capsys.readouterr().out) == {"ä": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        emit_json({"J": float("inf")})


def test_tables_keep_their_columns_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(*[f"column-{n}" for n in range(12)])
    table.add_row(*["value"] * 12)
    result(table)
    assert "column-11" in capsys.readouterr().out


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("salmacli.report.progress.time.monotonic", lambda: self.now)


def test_plain_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock(monkeypatch)
    progress = TerminalProgress(live=False)
    progress.start("training", total=1000, done=500)
    for step in range(100):
        clock.now += 0.5
        progress.advance(loss=1 / (step + 1))
    lines = capsys.readouterr().err.splitlines()
    # 5 % of 1000 are 50 steps and take longer than the 10 s after which a line comes anyway.
    assert len(lines) == 5
    assert lines[-1] == "training: 600/1000 loss 0.01  2.0/s  ETA 3:20"
    assert lines[0].startswith("training: 520/1000 ")


def test_the_end_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock(monkeypatch)
    progress = TerminalProgress(live=False)
    progress.start("scoring", total=3)
    for _ in range(3):
        clock.now += 0.1
        progress.advance()
    progress.finish()
    progress.finish()
    assert capsys.readouterr().err == "scoring: 3/3 10.0/s  in 0:00\n"


def test_fast_small_tasks_do_not_flood(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Clock(monkeypatch)
    progress = TerminalProgress(live=False)
    progress.start("scoring", total=10)
    for _ in range(10):
        progress.advance()
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal_keeps_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TerminalProgress(live=True)
    progress.start("training", total=2)
    progress.advance(loss=0.25)
    progress.say("saved [step-1]")
    progress.advance(loss=0.125)
    progress.finish()
    out, err = capsys.readouterr()
    assert out == ""
    assert "saved [step-1]" in err
    assert "2/2" in err
    assert "0.125" in err
