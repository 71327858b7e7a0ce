from __future__ import annotations

import json
from pathlib import Path

import pytest

from salmacli.cli import main
from salmacli.engine import flops


def test_table_and_json_say_the_same(
    run_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = []
    measure = flops.measure
    monkeypatch.setattr(flops, "measure", lambda *given: costs or costs.extend(measure(*given)) or costs)
    assert main(["flops", "--checkpoint", str(run_checkpoint), "--frames", "5"]) == 0
    table = capsys.readouterr().out
    assert main(["flops", "--frames", "5", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert f"{record['total'] / 1e9:,.3f}" in table
    assert f"{record['mba_share']:.2%}" in table
    assert sum(part["share"] for part in record["parts"]) == pytest.approx(1)
    assert record["total"] == sum(part["flops"] * part["runs"] for part in record["parts"])


@pytest.mark.slow
def test_presets_of_real_size_need_no_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "--preset", "salma-8b", "--frames", "5", "--json"]) == 0
    parts = {part["part"]: part for part in json.loads(capsys.readouterr().out)["parts"]}
    tokens, width, layers = 1 + (448 // 14) ** 2, 1024, 24  # InternViT-300M
    products = 12 * tokens * width**2 + 2 * tokens**2 * width  # attention's four, the MLP's eight, and Q·Kᵀ and ·V
    assert parts["vision tower"]["flops"] == 2 * (layers * products + (tokens - 1) * width * 3 * 14**2)
    assert parts["vision tower"]["runs"] == 5


def test_options_of_the_attention_are_counted(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    given = []
    monkeypatch.setattr(flops, "measure", lambda model, frames: given.append(model.config.cma) or [])
    assert main(["flops", "--set", "model.cma.levels=[16, 4]", "--set", "model.cma.layers=2"]) == 0
    assert given[0].levels == (16, 4) and given[0].layers == 2
    capsys.readouterr()
    assert main(["flops", "--set", "model.cma.levels=[8]"]) == 3
    assert "levels must be 16" in capsys.readouterr().err
    assert main(["flops", "--checkpoint", "x", "--set", "model.cma.layers=2"]) == 2


def test_an_unknown_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "--preset", "huge"]) == 2
    assert "tiny" in capsys.readouterr().err
