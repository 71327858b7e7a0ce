from __future__ import annotations

import json
from pathlib import Path

import pytest

from salmacli.cli import main


def test_the_default_makes_a_folder_and_reports(run_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(run_checkpoint / "ckpt.pth")]) == 0
    out, err = capsys.readouterr()
    made = run_checkpoint.parent / "first-step-7-salma"
    assert (made / "model.safetensors").is_file()
    assert "grounding.sam_mask_decoder" in out
    assert "changed" not in out
    assert "SALMA checkpoint folder, step 7" in err
    assert str(made) in err


def test_json_is_one_object_on_stdout(run_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(run_checkpoint), "--to", "pth", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["schema"], record["layout"], record["verified"]) == (2, "salma_folder", True)
    assert Path(record["out"]).is_file()
    assert record["files"].keys() == {Path(record["out"]).name}
    assert sum(row["tensors"] for row in record["modules"]) > 100


def test_a_dry_run_writes_nothing(run_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(run_checkpoint), "--dry-run"]) == 0
    assert "would write" in capsys.readouterr().err
    assert len(list(run_checkpoint.parent.iterdir())) == 1


@pytest.mark.slow
def test_a_training_says_what_it_changed(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared_data / "parity"
    argv = ["convert", str(folder / "training_v2.pth"), "--base", str(folder), "--lora-alpha", "16"]
    assert main([*argv, "--dtype", "bf16", "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    decoder = next(line for line in out.splitlines() if "grounding.sam_mask_decoder" in line)
    assert decoder.split()[3:8:2] == ["131", "131", "0"]
    assert "trained: " in err and "base: " in err
    assert "(v2), only what was trained, step 120" in err
    assert main([*argv, "--adapter", "--out", str(tmp_path / "adapter"), "--json"]) == 0
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert json.loads(capsys.readouterr().out)["provenance"]["lora"]["rank"] == 8


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["{tmp}/nowhere"], 4, "is missing"),
        (["{tmp}"], 4, "name one of them"),
        (["{step}", "--out", "{step}"], 2, "the checkpoint itself"),
        (["{step}", "--adapter"], 2, "holds no LoRA"),
        (["{step}", "--adapter", "--to", "pth"], 2, "--adapter writes a folder of its own kind"),
        (["{step}", "--to", "sa2va"], 4, "no place for the cross-modal attention"),
        (["{step}", "--base", "{tmp}/nobody"], 4, "nobody"),
    ],
)
def test_failures_are_one_line(
    run_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    code: int,
    told: str,
) -> None:
    assert main(["convert", *(text.format(tmp=tmp_path, step=run_checkpoint) for text in argv)]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert told in err
