from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from salmacli.checkpoints import save
from salmacli.checkpoints.contents import fingerprint_of, untied
from salmacli.checkpoints.save import save_checkpoint
from salmacli.errors import UsageError


class Tied(torch.nn.Module):
    """Two names for one matrix, and two views into one storage that are no aliases."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        both = torch.arange(6.0)
        self.register_buffer("first", both[:3])
        self.register_buffer("second", both[3:])


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_the_folder_holds_what_its_header_says(run_checkpoint: Path, tiny_model) -> None:
    header = json.loads((run_checkpoint / "config.json").read_text())
    assert (header["schema"], header["format"], header["step"]) == (1, "salma", 7)
    assert header["model"] == tiny_model.config.model_dump(mode="json")
    assert header["run_config"]["seed"] == 0
    assert (run_checkpoint / header["weights"]).is_file()
    names = {file.name for file in run_checkpoint.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "ckpt.pth",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= names
    assert _names(run_checkpoint.parent) == ["step-7"]


def test_the_trainer_state_holds_no_weights_and_says_where_they_are(run_checkpoint: Path, tiny_model) -> None:
    content = torch.load(run_checkpoint / "ckpt.pth", weights_only=True)
    assert "model.safetensors" in content["note"]
    assert content["step"] == 7
    assert content["state"]["epoch"] == 2
    weights = sum(tensor.numel() for tensor in tiny_model.state_dict().values())
    assert (run_checkpoint / "ckpt.pth").stat().st_size < weights


def test_without_a_trainer_state_there_is_no_pth(tiny_model, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", tiny_model, config={}, step=0)
    assert not (tmp_path / "model" / "ckpt.pth").exists()


def test_a_state_that_could_not_be_read_back_is_refused_at_once(tiny_model, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="plain data"):
        save_checkpoint(tmp_path / "step-1", tiny_model, config={}, step=1, trainer_state={"path": tmp_path})
    assert not list(tmp_path.iterdir())


def test_a_crash_leaves_the_old_checkpoint_and_no_litter(
    run_checkpoint: Path, tiny_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run_checkpoint / "config.json").read_text()

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(save, "_sync", crash)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(run_checkpoint, tiny_model, config={}, step=8)
    assert (run_checkpoint / "config.json").read_text() == before
    assert _names(run_checkpoint.parent) == ["step-7"]


def test_a_newer_checkpoint_replaces_the_older_one(run_checkpoint: Path, tiny_model) -> None:
    save_checkpoint(run_checkpoint, tiny_model, config={}, step=8)
    assert json.loads((run_checkpoint / "config.json").read_text())["step"] == 8
    assert not (run_checkpoint / "ckpt.pth").exists()
    assert _names(run_checkpoint.parent) == ["step-7"]


def test_nothing_but_a_checkpoint_is_ever_replaced(tiny_model, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(UsageError, match="no SALMA checkpoint"):
        save_checkpoint(tmp_path / "thesis", tiny_model, config={}, step=1)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_tied_tensors_are_written_once_and_views_are_not_taken_for_them(tmp_path: Path) -> None:
    tensors, aliases = untied(Tied())
    assert aliases == {"head.weight": "embedding.weight"}
    assert set(tensors) == {"embedding.weight", "first", "second"}
    assert tensors["second"].tolist() == [3, 4, 5]


def test_weights_are_those_of_the_model(run_checkpoint: Path, tiny_model) -> None:
    written = load_file(run_checkpoint / "model.safetensors")
    assert fingerprint_of(written) == fingerprint_of(untied(tiny_model)[0])


def test_the_fingerprint_sees_names_types_shapes_and_bytes() -> None:
    base = {"a": torch.arange(6.0)}
    others = [
        {"b": torch.arange(6.0)},
        {"a": torch.arange(6.0).reshape(2, 3)},
        {"a": torch.arange(6.0).view(torch.int32)},
        {"a": torch.tensor([0.0, 1, 2, 3, 4, 5.000001])},
        {"a": torch.arange(6.0), "b": torch.zeros(0)},
    ]
    prints = {fingerprint_of(tensors) for tensors in [base, *others]}
    assert len(prints) == 6
    assert fingerprint_of({"a": torch.arange(6.0), "b": torch.ones(())}) == fingerprint_of(
        {"b": torch.ones(()), "a": torch.arange(12.0)[:6]}
    )
    assert fingerprint_of({"a": torch.ones(2, dtype=torch.bfloat16)})
