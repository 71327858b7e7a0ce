from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from salmacli.checkpoints import export as export_module
from salmacli.checkpoints.export import default_out, export, fingerprint, key_report
from salmacli.checkpoints.layouts import Layout
from salmacli.errors import CheckpointError, UsageError


def test_there_and_back_changes_nothing(run_checkpoint: Path, tmp_path: Path) -> None:
    original = fingerprint(run_checkpoint)
    one = export(run_checkpoint / "ckpt.pth", "pth", tmp_path / "one.pth")
    back = export(tmp_path / "one.pth", "folder", tmp_path / "back")
    assert (one.layout, back.layout) == (Layout.SALMA_FOLDER, Layout.SALMA_PTH)
    assert one.fingerprint == back.fingerprint == original == fingerprint(tmp_path / "back")
    assert one.verified
    assert back.verified
    kept = ("config.json", "tokenizer.json", "tokenizer_config.json")
    assert all((tmp_path / "back" / name).read_bytes() == (run_checkpoint / name).read_bytes() for name in kept)
    assert not (tmp_path / "back" / "ckpt.pth").exists()


def test_results_lie_beside_the_checkpoint(run_checkpoint: Path) -> None:
    assert export(run_checkpoint).out == run_checkpoint.parent / "first-step-7-salma"
    assert default_out(run_checkpoint, 7, "pth").name == "first-step-7-salma.pth"
    assert default_out(Path("models/big.pth"), 7, "folder") == Path("models/big-salma")
    assert default_out(Path("models/big-salma.pth"), 7, "folder") == Path("models/big-salma")


def test_what_is_there_stays_unless_forced(run_checkpoint: Path) -> None:
    made = export(run_checkpoint).out
    with pytest.raises(UsageError, match="--force"):
        export(run_checkpoint)
    assert export(run_checkpoint, force=True).out == made
    with pytest.raises(UsageError, match="is the checkpoint itself"):
        export(run_checkpoint, out=run_checkpoint, force=True)
    with pytest.raises(UsageError, match="is a folder"):
        export(run_checkpoint, "pth", made, force=True)


def test_force_never_wipes_another_folder(run_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UsageError, match="no SALMA checkpoint"):
        export(run_checkpoint, out=tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "file").exists()


def test_a_dry_run_reports_and_writes_nothing(run_checkpoint: Path) -> None:
    made = export(run_checkpoint, dry_run=True)
    assert not made.verified
    assert made.modules
    assert [file.name for file in run_checkpoint.parent.iterdir()] == ["step-7"]


def test_a_checkpoint_that_fits_no_model_is_not_converted(run_checkpoint: Path) -> None:
    tensors = load_file(run_checkpoint / "model.safetensors")
    tensors.pop("cma.gamma")
    save_file(tensors, run_checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cma\.gamma"):
        export(run_checkpoint)
    assert [file.name for file in run_checkpoint.parent.iterdir()] == ["step-7"]


def test_a_result_that_comes_back_changed_is_noticed(
    run_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = export_module.write_folder

    def flip(folder: Path, contents) -> None:
        write(folder, contents)
        tensors = load_file(folder / "model.safetensors")
        tensors["cma.gamma"] += 1
        save_file(tensors, folder / "model.safetensors")

    monkeypatch.setattr(export_module, "write_folder", flip)
    with pytest.raises(CheckpointError, match="came back changed"):
        export(run_checkpoint, out=tmp_path / "out")


def test_the_key_report_counts_every_tensor_once(tiny_model) -> None:
    rows = key_report(tiny_model.state_dict())
    assert sum(row.tensors for row in rows) == len(tiny_model.state_dict())
    assert sum(row.parameters for row in rows) == sum(t.numel() for t in tiny_model.state_dict().values())
    assert {"cma", "grounding.image_encoder", "grounding.sam_mask_decoder", "text_hidden_fcs"} <= {
        r.module for r in rows
    }
    mixed = key_report({"cma.a": torch.zeros(2, 3), "cma.b": torch.zeros(4, dtype=torch.bfloat16)})
    assert [(row.tensors, row.parameters, row.dtype, row.bytes) for row in mixed] == [(2, 10, "bfloat16, float32", 32)]
