from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from salmacli.checkpoints import convert as convert_module
from salmacli.checkpoints.assemble import Recipe
from salmacli.checkpoints.convert import Conversion, convert, default_out
from salmacli.checkpoints.layouts import Layout
from salmacli.checkpoints.load import load_checkpoint, read_contents
from salmacli.checkpoints.sources.opening import open_source
from salmacli.config.files import sha256
from salmacli.errors import CheckpointError, UsageError

LLM, DECODER = "mllm.model.model.language_model", "grounding.sam_mask_decoder"
PEFT = "mllm.model.language_model.base_model.model."


def _saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def _rows(made: Conversion) -> dict[str, Any]:
    return {row.module: row for row in made.modules}


def _merge(file: Path, base: Path, out: Path, **options: Any) -> Conversion:
    return convert(file, Recipe((base,), 8.0), out=out, **options)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    return {name: lazy.read() for name, lazy in read_contents(path)[2].tensors.items()}


# SALMA's own checkpoints.


@pytest.mark.slow
def test_there_and_back_changes_nothing(run_checkpoint: Path, tmp_path: Path) -> None:
    one = convert(run_checkpoint / "ckpt.pth", to="pth", out=tmp_path / "one.pth")
    back = convert(tmp_path / "one.pth", out=tmp_path / "back")
    assert (one.layout, back.layout) == (Layout.SALMA_FOLDER, Layout.SALMA_PTH)
    assert one.fingerprint == back.fingerprint
    assert one.verified and back.verified
    assert one.step == back.step == 7
    kept = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    assert all((tmp_path / "back" / name).read_bytes() == (run_checkpoint / name).read_bytes() for name in kept)
    assert not (tmp_path / "back" / "ckpt.pth").exists()


@pytest.mark.slow
def test_results_lie_beside_the_checkpoint(run_checkpoint: Path) -> None:
    assert convert(run_checkpoint).out == run_checkpoint.parent / "first-step-7-salma"
    assert default_out(run_checkpoint, 7, "pth").name == "first-step-7-salma.pth"
    assert default_out(Path("models/big.pth"), 7, "folder") == Path("models/big-salma")
    assert default_out(Path("models/big-salma.pth"), 7, "folder") == Path("models/big-salma")
    assert default_out(Path("models/big.pth"), 0, "adapter") == Path("models/big-adapter")
    assert default_out(Path("Qwen2.5-VL-3B"), 0, "folder") == Path("Qwen2.5-VL-3B-salma")
    assert default_out(Path(), 0, "folder").parent == Path.cwd().parent


@pytest.mark.slow
def test_what_is_there_stays_unless_forced(run_checkpoint: Path) -> None:
    made = convert(run_checkpoint).out
    with pytest.raises(UsageError, match="--force"):
        convert(run_checkpoint)
    assert convert(run_checkpoint, force=True).out == made
    with pytest.raises(UsageError, match="is the checkpoint itself"):
        convert(run_checkpoint, out=run_checkpoint, force=True)
    with pytest.raises(UsageError, match="is a folder"):
        convert(run_checkpoint, to="pth", out=made, force=True)


@pytest.mark.slow
def test_force_never_wipes_another_folder(run_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UsageError, match="is no SALMA checkpoint folder"):
        convert(run_checkpoint, out=tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "file").exists()


@pytest.mark.slow
def test_a_dry_run_reports_and_writes_nothing(
    run_checkpoint: Path, released: Path, training_file: Path, tmp_path: Path
) -> None:
    made = convert(run_checkpoint, dry_run=True)
    assert not made.verified and not made.hashes
    assert made.modules
    assert [entry.name for entry in run_checkpoint.parent.iterdir()] == ["step-7"]
    before = sorted(tmp_path.iterdir())
    assert _rows(_merge(training_file, released, tmp_path / "out", dry_run=True))[LLM].changed == 15
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_checkpoint_that_fits_no_model_is_not_converted(run_checkpoint: Path) -> None:
    tensors = load_file(run_checkpoint / "model.safetensors")
    tensors.pop("cma.gamma")
    save_file(tensors, run_checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cma\.gamma"):
        convert(run_checkpoint)
    assert [entry.name for entry in run_checkpoint.parent.iterdir()] == ["step-7"]


def test_a_result_that_comes_back_changed_is_noticed(
    run_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = convert_module.write_folder

    def flip(folder: Path, contents, check) -> None:
        def spoil(part: Path) -> None:
            tensors = load_file(part / "model.safetensors")
            tensors["cma.gamma"] += 1
            save_file(tensors, part / "model.safetensors")
            check(part)

        write(folder, contents, check=spoil)

    monkeypatch.setattr(convert_module, "write_folder", flip)
    with pytest.raises(CheckpointError, match="came back changed"):
        convert(run_checkpoint, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Released models.


def test_a_released_model_and_back_is_the_identity(released: Path, tmp_path: Path) -> None:
    first = convert(released, out=tmp_path / "salma")
    back = convert(first.out, to="sa2va", out=tmp_path / "back")
    again = convert(back.out, out=tmp_path / "again")
    assert first.fingerprint == back.fingerprint == again.fingerprint
    ours, theirs = load_file(released / "model.safetensors"), load_file(back.out / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    assert read_contents(again.out)[2].model == read_contents(first.out)[2].model
    assert (first.layout, back.layout, again.layout) == (Layout.SA2VA, Layout.SALMA_FOLDER, Layout.SA2VA)


def test_the_result_loads(released: Path, tmp_path: Path) -> None:
    model, info = load_checkpoint(convert(released, out=tmp_path / "salma").out)
    assert model.config.inference_mode == "sa2va"
    assert info.step == 0


@pytest.mark.slow
def test_a_whole_model_is_compared_with_a_base(released: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(released, other)
    with pytest.raises(CheckpointError, match=r"changes nothing: all \d+ tensors are those of"):
        convert(other, Recipe((released,)), dry_run=True)
    tensors = load_file(other / "model.safetensors")
    tensors["mlp1.1.bias"] += 1
    save_file(tensors, other / "model.safetensors")
    rows = _rows(convert(other, Recipe((released,)), dry_run=True))
    assert {name: row.changed for name, row in rows.items() if row.changed} == {
        "mllm.model.model.multi_modal_projector": 1
    }


@pytest.mark.slow
def test_another_type(released: Path, training_file: Path, tmp_path: Path) -> None:
    made = convert(training_file, Recipe((released,), 8.0, dtype=torch.bfloat16), out=tmp_path / "half")
    whole = _merge(training_file, released, tmp_path / "whole")
    assert {row.dtype for row in made.modules} == {"bfloat16"}  # tables that the base has in it, too
    half, full = _tensors(made.out), _tensors(whole.out)
    assert all(torch.equal(half[name], full[name].bfloat16()) for name in full)
    assert 0 < _rows(made)[DECODER].changed < _rows(made)[DECODER].tensors, "some small steps are rounded away"
    assert _rows(made)["grounding.image_encoder"].changed == 0


@pytest.mark.slow
def test_a_type_that_cannot_hold_a_weight(released: Path, tmp_path: Path) -> None:
    tensors = load_file(released / "model.safetensors")
    tensors["mlp1.1.bias"][0] = 1e5
    folder = Path(shutil.copytree(released, tmp_path / "large"))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="float16 cannot hold its largest weights"):
        convert(folder, Recipe(dtype=torch.float16), out=tmp_path / "half")
    assert not (tmp_path / "half").exists()


@pytest.mark.slow
def test_the_rounding_of_the_rotary_embedding_is_the_sources_on_every_way(
    released: Path, training_file: Path, tmp_path: Path
) -> None:
    """Released in bfloat16, or trained in float32: no cast and no layout changes what is computed."""

    def rotary(path: Path) -> str:
        return read_contents(path)[2].model["mllm"]["rotary"]

    def ways(first: Path, rounding: str) -> None:
        wide = convert(first, Recipe(dtype=torch.float32), out=tmp_path / f"{first.name}-wide").out
        narrow = convert(wide, Recipe(dtype=torch.bfloat16), out=tmp_path / f"{first.name}-narrow").out
        public = convert(narrow, None, "sa2va", tmp_path / f"{first.name}-public").out
        back = convert(public, None, "folder", tmp_path / f"{first.name}-back").out
        assert [rotary(path) for path in (first, wide, narrow, back)] == [rounding] * 4

    public = Path(shutil.copytree(released, tmp_path / "public"))
    config = json.loads((public / "config.json").read_text())
    del config["salma"]["rotary"]  # the published ones do not say
    (public / "config.json").write_text(json.dumps(config))
    ways(convert(public, None, "folder", tmp_path / "released").out, "rounded-frequencies")
    ways(_merge(training_file, public, tmp_path / "trained").out, "exact")
    half = convert(training_file, Recipe((released,), 8.0, dtype=torch.bfloat16), out=tmp_path / "half").out
    assert rotary(half) == "exact"


@pytest.mark.slow
def test_force_deletes_nothing_else(released: Path, training_file: Path, tmp_path: Path) -> None:
    out = convert(released, None, "folder", tmp_path / "out").out
    (out / "eval").mkdir()
    with pytest.raises(UsageError, match=r"also holds eval, which --force would delete"):
        convert(released, None, "folder", out, force=True)
    (out / "eval").rmdir()
    inner = shutil.copy(training_file, out / "inner.pth")
    with pytest.raises(UsageError, match=r"inner\.pth, which is being read"):
        _merge(Path(inner), released, out, force=True)
    Path(inner).unlink()
    with pytest.raises(UsageError, match="the checkpoint itself"):
        convert(training_file, Recipe((out,), 8.0), "folder", out, force=True)
    assert convert(released, None, "folder", out, force=True).verified


@pytest.mark.slow
def test_a_result_that_comes_back_changed_never_takes_the_place(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = convert(released, None, "folder", tmp_path / "out").out
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    monkeypatch.setattr(convert_module, "fingerprint_of", lambda tensors: "other")
    for form, place in (("folder", out), ("pth", tmp_path / "new.pth"), ("sa2va", tmp_path / "new")):
        with pytest.raises(CheckpointError, match="came back changed"):
            convert(released, None, form, place, force=True)  # type: ignore[arg-type]
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.slow
def test_deepspeeds_notes_are_read_as_a_files(released: Path, training, tmp_path: Path) -> None:
    folder = tmp_path / "iter_120.pth"
    folder.mkdir()
    content = training()
    meta = {"iter": 120, "cfg": "llm_lora=dict(type=LoraConfig, r=4, lora_alpha=16)"}
    torch.save({"module": content["state_dict"], "meta": meta}, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(UsageError, match="16"):
        convert(folder, Recipe((released,), 8.0), dry_run=True)
    assert convert(folder, Recipe((released,)), dry_run=True).step == 120


@pytest.mark.slow
def test_a_change_that_the_type_cannot_hold_is_no_change(released: Path, training, tmp_path: Path) -> None:
    content = training(noise=0.0)
    content["state_dict"]["mllm.model.mlp1.0.weight"] += 1e-5  # ones
    faint = _saved(content, tmp_path / "faint.pth")
    assert sum(row.changed or 0 for row in _merge(faint, released, tmp_path / "out", dry_run=True).modules) == 1
    with pytest.raises(CheckpointError, match="changes nothing"):
        convert(faint, Recipe((released,), 8.0, dtype=torch.bfloat16), dry_run=True)


# Training files.


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_training_file_is_merged_and_reported(released: Path, training, tmp_path: Path, version: str) -> None:
    content = training(version)
    made = _merge(_saved(content, tmp_path / "iter.pth"), released, tmp_path / "out")
    assert made.layout is (Layout.TRAINING_V2 if version == "v2" else Layout.TRAINING_V1)
    assert made.step == 120
    rows = _rows(made)
    assert (rows[LLM].changed, rows[LLM].new) == (15, 0)  # 14 with LoRA, and the embedding
    assert rows["mllm.model.lm_head"].changed == 1
    assert rows["text_hidden_fcs"].changed == 4
    assert rows[DECODER].changed == rows[DECODER].tensors
    assert rows["mllm.model.model.vision_tower"].changed == rows["grounding.image_encoder"].changed == 0
    assert 0.01 < rows[DECODER].change <= rows[DECODER].most < 10
    back, base, file = _tensors(made.out), open_source(released).tensors, content["state_dict"]
    a, b = (file[f"{PEFT}model.layers.1.mlp.down_proj.lora_{side}.default.weight"] for side in "AB")
    name = f"{LLM}.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(back[name], base[name].read().float() + 2.0 * b @ a)
    assert torch.equal(back["text_hidden_fcs.2.weight"], file["text_hidden_fcs.2.weight"])
    assert made.provenance["trained"]["files"] == {"iter.pth": sha256(tmp_path / "iter.pth")}
    assert made.provenance["lora"] == {"rank": 4, "alpha": 8.0, "scale": 2.0, "weights": 14}
    assert read_contents(made.out)[2].provenance == made.provenance


@pytest.mark.slow
def test_files_that_differ_give_models_that_differ_and_the_same_file_the_same(
    released: Path, training, tmp_path: Path
) -> None:
    files = [_saved(training(seed=seed), tmp_path / f"{seed}.pth") for seed in (0, 1)]
    one, again, other = (_merge(files[n], released, tmp_path / f"out{k}") for k, n in enumerate((0, 0, 1)))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert one.hashes == again.hashes
    assert other.hashes.keys() == one.hashes.keys()
    assert all(other.hashes[name] != digest for name, digest in one.hashes.items())
    assert (one.out / "config.json").read_bytes() == (again.out / "config.json").read_bytes()
    ours, theirs = _tensors(one.out), _tensors(other.out)
    names = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert len(names) == sum(row.changed for row in one.modules)


@pytest.mark.slow
def test_alpha_from_a_configuration(released: Path, training_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "sa2va.py"
    config.write_text("model = dict(mllm=dict(llm_lora=dict(type=LoraConfig, r=4, lora_alpha=8)))")
    made = convert(training_file, Recipe((released,), config=config), dry_run=True)
    assert made.fingerprint == _merge(training_file, released, tmp_path / "out", dry_run=True).fingerprint
    with pytest.raises(UsageError, match=r"stated differently: 16 \(--lora-alpha\), 8 \(.*sa2va\.py\)"):
        convert(training_file, Recipe((released,), 16.0, config))
    assert convert(training_file, Recipe((released,), 16.0), dry_run=True).fingerprint != made.fingerprint


@pytest.mark.slow
def test_alpha_from_the_configuration_that_mmengine_puts_into_files(released: Path, training, tmp_path: Path) -> None:
    content = training()
    content["meta"]["cfg"] = "model = dict(mllm=dict(llm_lora=dict(type='peft.LoraConfig', r=4, lora_alpha=8)))"
    file = _saved(content, tmp_path / "iter.pth")
    made = convert(file, Recipe((released,)), dry_run=True)
    assert made.fingerprint == convert(file, Recipe((released,), 8.0), dry_run=True).fingerprint
    with pytest.raises(UsageError, match=r"16 \(--lora-alpha\), 8 \(the configuration inside iter\.pth\)"):
        convert(file, Recipe((released,), 16.0))
    content["meta"]["cfg"] = content["meta"]["cfg"].replace("r=4", "r=128")
    with pytest.raises(CheckpointError, match="rank 4, but its configuration states 128"):
        convert(_saved(content, file), Recipe((released,), 8.0))
    content["meta"]["cfg"] = "no Python ("
    assert convert(_saved(content, file), Recipe((released,), 8.0), dry_run=True).fingerprint == made.fingerprint


@pytest.mark.slow
def test_a_deepspeed_folder(released: Path, training, training_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ds.pth"
    folder.mkdir()
    _saved({"module": training()["state_dict"]}, folder / "mp_rank_00_model_states.pt")
    made = _merge(folder, released, tmp_path / "out")
    assert made.layout is Layout.DEEPSPEED
    assert made.fingerprint == _merge(training_file, released, tmp_path / "other", dry_run=True).fingerprint
    assert made.provenance["trained"]["files"].keys() == {"mp_rank_00_model_states.pt"}


@pytest.mark.slow
def test_what_a_training_file_does_not_say_is_asked_for(released: Path, training_file: Path) -> None:
    for alpha in (0.0, -8.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="--lora-alpha is"):
            convert(training_file, Recipe((released,), alpha))
    with pytest.raises(UsageError, match="--base"):
        convert(training_file, Recipe(lora_alpha=8))
    with pytest.raises(UsageError, match="--lora-alpha"):
        convert(training_file, Recipe((released,)))


@pytest.mark.slow
def test_the_cma_extension(released: Path, training, tmp_path: Path) -> None:
    content, width = training("v1"), 64
    attention = torch.nn.MultiheadAttention(width, 8).state_dict()
    others = {
        "ln": torch.nn.LayerNorm(width),
        "proj": torch.nn.Linear(width, width),
        "token_gate": torch.nn.Linear(width, 1),
    }
    extension = {f"attn.{name}": tensor for name, tensor in attention.items()}
    extension |= {
        f"{part}.{name}": tensor for part, module in others.items() for name, tensor in module.state_dict().items()
    }
    content["state_dict"] |= {f"grounding_encoder.cma.{name}": tensor for name, tensor in extension.items()}
    content["state_dict"] |= {
        "gamma_attn": torch.tensor(0.5),
        "gamma": torch.tensor(0.5),
        "_gamma_scale": torch.tensor(1.0),
    }
    made = _merge(_saved(content, tmp_path / "cma.pth"), released, tmp_path / "out")
    assert made.layout is Layout.TRAINING_CMA
    assert _rows(made)["cma"].new == _rows(made)["cma"].tensors == 13
    assert any("outputs differ" in note for note in made.notes)
    model, _ = load_checkpoint(made.out)
    assert model.cma is not None and model.cma.gamma.item() == 0.5
    with pytest.raises(CheckpointError, match="no place for the cross-modal attention"):
        convert(made.out, to="sa2va", dry_run=True)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_internlm2(internlm2: Path, training, tmp_path: Path, version: str) -> None:
    """Its attention is fused in the file, so its LoRA is, too; ours is not."""
    content = training(version, folder=internlm2)
    made = _merge(_saved(content, tmp_path / "iter.pth"), internlm2, tmp_path / "out")
    rows = _rows(made)
    assert (rows[LLM].changed, rows["mllm.model.lm_head"].changed) == (15, 1)
    back = convert(made.out, to="sa2va", out=tmp_path / "back")
    assert convert(back.out, dry_run=True).fingerprint == made.fingerprint
    ours, base = load_file(back.out / "model.safetensors"), load_file(internlm2 / "model.safetensors")
    assert ours.keys() == base.keys()
    name, file = "model.layers.1.attention.wqkv", content["state_dict"]
    a, b = (file[f"{PEFT}{name}.lora_{side}.default.weight"] for side in "AB")
    full = f"language_model.{name}.weight"
    torch.testing.assert_close(ours[full], base[full].float() + 2.0 * b @ a)
    adapter = convert(tmp_path / "iter.pth", Recipe((internlm2,), 8.0), "adapter", tmp_path / "adapter")
    assert adapter.fingerprint == made.fingerprint


@pytest.mark.slow
def test_a_base_that_was_converted_is_the_same_base(released: Path, training_file: Path, tmp_path: Path) -> None:
    base = convert(released, out=tmp_path / "base").out
    expected = _merge(training_file, released, tmp_path / "out", dry_run=True).fingerprint
    assert _merge(training_file, base, tmp_path / "out", dry_run=True).fingerprint == expected


@pytest.mark.slow
def test_a_module_that_stayed_what_it_was_is_said(released: Path, training, tmp_path: Path) -> None:
    content = training()
    for name, tensor in content["state_dict"].items():
        if ".lora_B." in name:
            tensor.zero_()
    still = training(noise=0.0)["state_dict"]
    vocabulary = [name for name in still if "embed_tokens" in name]
    content["state_dict"] |= {name: still[name] for name in vocabulary}
    made = _merge(_saved(content, tmp_path / "iter.pth"), released, tmp_path / "out", dry_run=True)
    assert _rows(made)[LLM].changed == 0
    assert any(f"names 15 tensors of {LLM}, but none of them differs" in note for note in made.notes)


@pytest.mark.slow
def test_a_full_disk_is_noticed_before_anything_is_written(
    released: Path, training_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr("salmacli.checkpoints.files.disk.shutil.disk_usage", lambda path: usage)
    for to in ("folder", "pth", "sa2va", "adapter"):
        with pytest.raises(CheckpointError, match=r"its disk has 0\.00 GB left"):
            convert(training_file, Recipe((released,), 8.0), to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [training_file]


@pytest.mark.slow
def test_a_training_on_pieces(released: Path, training, tmp_path: Path) -> None:
    """On an InternVL and a SAM 2, the training brings the text projector, and SAM 2's own decoder stays."""
    tensors = load_file(released / "model.safetensors")
    mllm, sam2 = tmp_path / "internvl", tmp_path / "sam2.pt"
    shutil.copytree(released, mllm)
    llm = {n: t for n, t in tensors.items() if n.startswith(("vision_model.", "mlp1.", "language_model."))}
    save_file(llm, mllm / "model.safetensors")
    prefix = "grounding_encoder.sam2_model."
    named = {
        n.removeprefix(prefix).replace(".g_weight", ".gamma"): t for n, t in tensors.items() if n.startswith(prefix)
    }
    _saved({"model": named}, sam2)
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps(json.loads((released / "config.json").read_text())["salma"]["sam2"]))
    file = _saved(training(), tmp_path / "iter.pth")
    made = convert(file, Recipe((mllm, sam2), 8.0, sam2_config=sizes), out=tmp_path / "out")
    assert _rows(made)["text_hidden_fcs"].new == 4
    other = _merge(file, released, tmp_path / "other")
    ours, theirs, second = _tensors(made.out), _tensors(other.out), "grounding.propagation_decoder."
    assert {name for name in ours if not name.startswith(second)} == theirs.keys()
    assert all(torch.equal(ours[name], one) for name, one in theirs.items())
    assert sum(name.startswith(second) for name in ours) == _rows(made)[DECODER].tensors
    told, alone = (read_contents(one.out)[2].model for one in (made, other))
    assert (told["inference_mode"], alone["inference_mode"]) == ("consistent", "sa2va")
    sam2_section = {**alone["sam2"], "two_decoders": True}
    assert told == {**alone, "sam2": sam2_section, "inference_mode": "consistent"}
    with pytest.raises(CheckpointError, match="there is no SAM 2"):
        convert(file, Recipe((mllm,), 8.0))
    both = convert(mllm, Recipe((sam2,), sam2_config=sizes), dry_run=True)
    assert any("text_hidden_fcs starts fresh" in note for note in both.notes)
    assert not any("decoder" in note for note in both.notes), "nobody gave a second one"


# The real case.


@pytest.mark.slow
def test_the_real_case_in_both_forms(shared_data: Path, tmp_path: Path) -> None:
    """Weights of the public implementation; its outputs are compared in tests/engine/test_parity.py."""
    folder = shared_data / "parity"
    first = convert(folder, out=tmp_path / "salma")
    back = convert(first.out, to="sa2va", out=tmp_path / "back")
    ours, theirs = load_file(folder / "model.safetensors"), load_file(back.out / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    made = convert(folder / "training_v2.pth", Recipe((folder,), config=folder / "case.json"), out=tmp_path / "trained")
    rows = _rows(made)
    assert made.provenance["lora"] == {"rank": 8, "alpha": 16.0, "scale": 2.0, "weights": 14}
    assert (rows[LLM].changed, rows["mllm.model.lm_head"].changed, rows["text_hidden_fcs"].changed) == (15, 1, 4)
    assert rows["mllm.model.model.multi_modal_projector"].changed == 6
    assert rows[DECODER].changed == rows[DECODER].tensors == 131
    assert rows["mllm.model.model.vision_tower"].changed == rows["grounding.memory_attention"].changed == 0
