from __future__ import annotations

import json
import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from salmacli.checkpoints.card import card
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.load import (
    build_model,
    fill,
    load_checkpoint,
    load_trainer_state,
    open_checkpoint,
    read_contents,
)
from salmacli.checkpoints.save import save_checkpoint, write_folder, write_pth
from salmacli.config.files import sha256
from salmacli.config.loading import load_config
from salmacli.errors import CheckpointError
from salmacli.models.salma import Salma


class Code:
    """What a stranger's pickle may hold."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("exit 1",)


def _rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _header(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["", "ckpt.pth", "model.safetensors"])
def test_every_way_to_name_it_gives_the_same_model(run_checkpoint: Path, tiny_model, name: str) -> None:
    model, info = load_checkpoint(run_checkpoint / name)
    assert (info.path, info.step, info.run_config["seed"]) == (run_checkpoint, 7, 0)
    assert model.config == tiny_model.config
    assert not model.training
    ours, theirs = tiny_model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    text = "Sure, [SEG]. the ünknown"
    assert model.tokenizer(text)["input_ids"] == tiny_model.tokenizer(text)["input_ids"]


def test_one_pth_gives_the_same_model(run_checkpoint: Path, tiny_model, tmp_path: Path) -> None:
    write_pth(tmp_path / "one.pth", read_contents(run_checkpoint)[2])
    model, info = load_checkpoint(tmp_path / "one.pth")
    assert info.step == 7
    assert all(torch.equal(a, b) for a, b in zip(tiny_model.parameters(), model.parameters(), strict=True))
    assert model.tokenizer.get_vocab() == tiny_model.tokenizer.get_vocab()


def test_a_folder_of_an_earlier_version(run_checkpoint: Path, tiny_model) -> None:
    """It had one weights file, the tokenizer, and no provenance, model card or processor."""
    header = json.loads((run_checkpoint / "config.json").read_text())
    del header["provenance"]
    (run_checkpoint / "config.json").write_text(json.dumps(header))
    (run_checkpoint / "README.md").unlink()
    (run_checkpoint / "processor_config.json").unlink()
    model, info = load_checkpoint(run_checkpoint)
    assert info.provenance == {}
    assert all(torch.equal(a, b) for a, b in zip(tiny_model.parameters(), model.parameters(), strict=True))


def test_a_gamma_without_a_row(run_checkpoint: Path) -> None:
    """Earlier versions stored the bare number."""
    _rewrite(run_checkpoint, lambda tensors: tensors.update({"cma.gamma": torch.tensor(0.25)}))
    model, _ = load_checkpoint(run_checkpoint)
    assert model.cma is not None and model.cma.gamma.tolist() == [0.25]


def test_the_type_is_the_one_asked_for(run_checkpoint: Path, tiny_model) -> None:
    model, _ = load_checkpoint(run_checkpoint, dtype=torch.bfloat16)
    ours, theirs = tiny_model.state_dict(), model.state_dict()
    for name, tensor in theirs.items():
        wanted = torch.float32 if "gaussian_matrix" in name else torch.bfloat16
        assert tensor.dtype is wanted and torch.equal(tensor, ours[name].to(wanted))
    # Tables that no file holds stay as exact as the model computes them.
    computed = {name: one for name, one in tiny_model.named_buffers() if name not in ours}
    assert computed and all(torch.equal(dict(model.named_buffers())[name], one) for name, one in computed.items())


@pytest.mark.gpu
def test_tensors_go_straight_to_the_device(run_checkpoint: Path, tiny_model) -> None:
    model, _ = load_checkpoint(run_checkpoint, "cuda", torch.bfloat16)
    assert all(one.is_cuda for one in (*model.parameters(), *model.buffers()))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.cpu(), tiny_model.state_dict()[name].to(tensor.dtype))


def test_one_tensor_at_a_time_is_in_memory(run_checkpoint: Path) -> None:
    place, _, contents = read_contents(run_checkpoint)
    alive: list[weakref.ref[torch.Tensor]] = []

    def watched(lazy: LazyTensor) -> LazyTensor:
        def read() -> torch.Tensor:
            assert not any(one() is not None for one in alive)
            tensor = lazy.read().clone()
            alive.append(weakref.ref(tensor))
            return tensor

        return replace(lazy, read=read)

    model = build_model(contents, place)
    fill(model, {name: watched(lazy) for name, lazy in contents.tensors.items()}, place)
    assert len(alive) == len(contents.tensors)


def test_a_model_is_its_own_once_it_is_loaded(run_checkpoint: Path, tiny_model) -> None:
    model, _ = load_checkpoint(run_checkpoint)
    weights = run_checkpoint / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(bytes(weights.stat().st_size // 2))
    assert all(torch.equal(a, b) for a, b in zip(tiny_model.parameters(), model.parameters(), strict=True))


@pytest.mark.slow
def test_tied_tensors_stay_one(tmp_path: Path) -> None:
    config = load_config("tiny", []).model
    native = {**config.mllm.native, "tie_word_embeddings": True}
    tied = config.model_copy(update={"mllm": config.mllm.model_copy(update={"native": native})})
    save_checkpoint(tmp_path / "tied", Salma.build(tied, ["the red circle"]), config={}, step=0)
    head = "mllm.model.lm_head.weight"
    assert head not in load_file(tmp_path / "tied" / "model.safetensors")
    model, _ = load_checkpoint(tmp_path / "tied", dtype=torch.bfloat16)
    assert model.mllm.model.lm_head.weight is model.mllm.model.get_input_embeddings().weight
    _rewrite(tmp_path / "tied", lambda tensors: tensors.update({head: torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"ties .*lm_head\.weight to .* but they differ"):
        load_checkpoint(tmp_path / "tied")


@pytest.mark.slow
def test_shards(run_checkpoint: Path, tiny_model, tmp_path: Path) -> None:
    write_folder(tmp_path / "cut", read_contents(run_checkpoint)[2], max_shard_bytes=4_000_000)
    parts = sorted(tmp_path.glob("cut/model-*-of-*.safetensors"))
    assert len(parts) > 2
    for path in (tmp_path / "cut", parts[1], tmp_path / "cut" / "model.safetensors.index.json"):
        model, info = load_checkpoint(path)
        assert info.path == tmp_path / "cut"
        assert all(torch.equal(a, b) for a, b in zip(tiny_model.parameters(), model.parameters(), strict=True))
    before = info.record()["sha256"]
    changed = load_file(parts[1])
    save_file({name: tensor + 1 for name, tensor in changed.items()}, parts[1])
    assert info.record()["sha256"] == before, "files are read once"
    assert open_checkpoint(tmp_path / "cut")[0].record()["sha256"] != before
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=rf"lacks the shard {parts[1].name}"):
        load_checkpoint(tmp_path / "cut")


def test_the_record_names_the_weights_by_hash(run_checkpoint: Path) -> None:
    _, info = load_checkpoint(run_checkpoint)
    expected = {
        "path": str(run_checkpoint),
        "step": 7,
        "sha256": sha256(run_checkpoint / "model.safetensors"),
    }
    assert info.record() == expected


def test_the_trainer_state_comes_back(run_checkpoint: Path) -> None:
    state = load_trainer_state(run_checkpoint)
    assert state["epoch"] == 2
    assert torch.equal(state["optimizer"]["momentum"], torch.ones(3))


def test_keys_that_do_not_fit_are_all_told_in_one_line(run_checkpoint: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["cma.gamma"]
        tensors["cma.delta"] = torch.zeros(1)
        tensors["text_hidden_fcs.0.bias"] = torch.zeros(3)

    _rewrite(run_checkpoint, change)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(run_checkpoint)
    text = str(caught.value)
    assert "lacks 1 tensor (cma.gamma)" in text
    assert "no place for 1 tensor (cma.delta)" in text
    assert "1 tensor (text_hidden_fcs.0.bias (3,) for (128,))" in text


def test_many_faults_are_counted_and_the_first_few_named(run_checkpoint: Path) -> None:
    _rewrite(
        run_checkpoint,
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("cma.")],
    )
    with pytest.raises(CheckpointError, match=r"lacks 13 tensors \(cma\.\S+, cma\.\S+, cma\.\S+, cma\.\S+, …\)"):
        load_checkpoint(run_checkpoint)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schema": 2}, "schema 2"),
        ({"model": {"mllm": {}}}, "model config does not fit"),
        ({"step": "7"}, "lacks step"),
        ({"format": "other"}, "weights file without the config.json"),
    ],
)
def test_headers_that_do_not_fit(run_checkpoint: Path, changes: dict[str, object], told: str) -> None:
    _header(run_checkpoint, **changes)
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(run_checkpoint / "model.safetensors")


def test_a_broken_header(run_checkpoint: Path) -> None:
    (run_checkpoint / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        load_checkpoint(run_checkpoint)


@pytest.mark.parametrize("size", [0, 5, 5000])
def test_cut_off_weights(run_checkpoint: Path, size: int) -> None:
    weights = run_checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is (cut off|empty)"):
        load_checkpoint(run_checkpoint)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_cut_off_pth(run_checkpoint: Path, tmp_path: Path, share: float) -> None:
    write_pth(tmp_path / "one.pth", read_contents(run_checkpoint)[2])
    content = (tmp_path / "one.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.pth is (cut off|empty)"):
        load_checkpoint(tmp_path / "cut.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_to_run_code_is_named_and_not_run(tmp_path: Path, zipped: bool) -> None:
    torch.save({"format": "salma", "x": Code()}, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"wants to run (posix|nt)\.system"):
        load_checkpoint(tmp_path / "evil.pth")


def test_a_trainer_state_that_wants_to_run_code(run_checkpoint: Path) -> None:
    torch.save({"format": "salma-trainer", "state": Code()}, run_checkpoint / "ckpt.pth")
    with pytest.raises(CheckpointError, match="wants to run"):
        load_trainer_state(run_checkpoint)


def test_a_model_without_trainer_state_cannot_go_on(run_checkpoint: Path) -> None:
    (run_checkpoint / "ckpt.pth").unlink()
    with pytest.raises(CheckpointError, match="holds no trainer state"):
        load_trainer_state(run_checkpoint)


def test_a_lonely_trainer_state_says_what_it_lacks(run_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(run_checkpoint / "ckpt.pth", tmp_path / "ckpt.pth")
    with pytest.raises(CheckpointError, match="without the weights"):
        load_checkpoint(tmp_path / "ckpt.pth")


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": [1], "tokenizer": {}},
        {"state_dict": {"a": 1}, "tokenizer": {}},
        {"state_dict": {}, "tokenizer": {"../x": 1}},
        {"state_dict": {}, "tokenizer": None},
    ],
)
def test_a_pth_of_wrong_parts(tmp_path: Path, content: dict[str, object]) -> None:
    header = {"format": "salma", "schema": 1, "step": 1, "model": {}, "run_config": {}}
    torch.save({**header, **content}, tmp_path / "one.pth")
    with pytest.raises(CheckpointError, match=r"is not a mapping|instead of named tensors|not a tensor"):
        load_checkpoint(tmp_path / "one.pth")


def test_tokenizer_files_cannot_leave_their_folder(run_checkpoint: Path, tmp_path: Path) -> None:

    write_pth(tmp_path / "one.pth", read_contents(run_checkpoint)[2])
    content = torch.load(tmp_path / "one.pth", weights_only=True)
    content["tokenizer"]["../outside"] = "x"
    torch.save(content, tmp_path / "one.pth")
    with pytest.raises(CheckpointError, match="is no file of a tokenizer"):
        load_checkpoint(tmp_path / "one.pth")


def test_a_broken_tokenizer(run_checkpoint: Path) -> None:
    (run_checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="its tokenizer cannot be read"):
        load_checkpoint(run_checkpoint)


@pytest.mark.parametrize("native", [{"model_type": "nobody"}, {"text_config": {"num_hidden_layers": 10**7}}])
def test_models_that_transformers_refuses(run_checkpoint: Path, native: dict[str, object]) -> None:
    header = json.loads((run_checkpoint / "config.json").read_text())
    whole = header["model"]["mllm"]["native"]
    if "text_config" in native:
        text = {**whole["text_config"], **native["text_config"], "layer_types": ["full_attention"]}  # type: ignore[dict-item]
        native = {"text_config": text}
    header["model"]["mllm"]["native"] = {**whole, **native}
    _header(run_checkpoint, **header)
    with pytest.raises(CheckpointError, match="its model config makes no model") as caught:
        load_checkpoint(run_checkpoint)
    assert str(run_checkpoint) in str(caught.value)


def test_a_pth_holds_no_other_files(run_checkpoint: Path, tmp_path: Path) -> None:
    write_pth(tmp_path / "one.pth", read_contents(run_checkpoint)[2])
    content = torch.load(tmp_path / "one.pth", weights_only=True)
    content["tokenizer"]["config.json"] = "{}"
    torch.save(content, tmp_path / "one.pth")
    with pytest.raises(CheckpointError, match=r"'config\.json' is no file of a tokenizer; convert it again"):
        read_contents(tmp_path / "one.pth")


def test_the_card_names_no_path_as_its_base(
    run_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    names = ["org/sa2va", "mine/model", "weights/sam2.pt", "/data/model", "org/sa2va", "iter_9.pth"]
    sources = [{"name": name, "layout": "sa2va", "files": {}} for name in names]
    contents = replace(read_contents(run_checkpoint)[2], provenance={"sources": sources})
    contents = replace(contents, model={**contents.model, "sam2": {"base": "/data/sam2"}, "mllm": {"base": "org/mllm"}})
    said = card(contents).split("---")[1]
    assert yaml.safe_load(said)["base_model"] == ["org/mllm", "org/sa2va"]
