"""A model that carries SAM 2's own mask decoder beside the one that was trained with language."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from salmacli import SalmaModel
from salmacli.checkpoints import pretrained
from salmacli.checkpoints.assemble import Recipe, assemble
from salmacli.checkpoints.contents import Contents, fingerprint_of
from salmacli.checkpoints.convert import Conversion, convert
from salmacli.checkpoints.load import load_checkpoint, read_contents
from salmacli.checkpoints.save import save_checkpoint, write_folder
from salmacli.checkpoints.sources.opening import open_source
from salmacli.checkpoints.sources.sa2va import sa2va_folder
from salmacli.cli import main
from salmacli.config.files import sha256
from salmacli.config.loading import load_config
from salmacli.config.schema import ModelConfig
from salmacli.errors import CheckpointError, ConfigError

TRAINED, ORIGINAL = "grounding.sam_mask_decoder", "grounding.propagation_decoder"
Sam2File = Callable[..., Path]


@pytest.fixture(scope="module")
def sam2(sam2_file: Sam2File) -> Path:
    """The SAM 2 that the released model was made of."""
    return sam2_file()


def _recipe(*bases: Path, **more: Any) -> Recipe:
    sizes = next(base.parent / "sizes.json" for base in bases if base.suffix == ".pt")
    return Recipe(bases, sam2_config=sizes, **more)


def _decoder(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): one for name, one in tensors.items() if name.startswith(f"{prefix}.")}


def _tensors(contents: Contents | Path) -> dict[str, Tensor]:
    contents = read_contents(contents)[2] if isinstance(contents, Path) else contents
    return {name: lazy.read() for name, lazy in contents.tensors.items()}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one
    )


@pytest.fixture(scope="module")
def both(released: Path, sam2: Path, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """The released model and its SAM 2, converted. Shared: copy what you change."""
    return convert(released, _recipe(sam2), out=tmp_path_factory.mktemp("both") / "salma")


# Converting.


def test_a_sam_2_beside_a_released_model_gives_the_second_decoder(both: Conversion, released: Path, sam2: Path) -> None:
    ours, alone = _tensors(both.out), _tensors(assemble(released, Recipe()).contents)
    own = torch.load(sam2)["model"]
    assert _equal(_decoder(ours, ORIGINAL), _decoder(own, "sam_mask_decoder"))
    assert _equal({name: one for name, one in ours.items() if not name.startswith(ORIGINAL)}, alone)
    model = read_contents(both.out)[2].model
    assert model["sam2"]["two_decoders"] is True and model["inference_mode"] == "consistent"
    told = " | ".join(both.notes)
    count = len(_decoder(ours, TRAINED))
    assert f"differs from SAM 2's own in {count} of {count} tensors (‖Δ‖/‖original‖" in told
    assert f"{sam2}: all but its mask decoder is in {released} already, rounding aside" in told
    assert "own mode becomes consistent instead of sa2va" in told
    rows = {row.module: row for row in both.modules}
    assert (rows[ORIGINAL].changed, rows[ORIGINAL].new, rows[ORIGINAL].tensors) == (0, 0, count)
    assert rows[TRAINED].changed == count and 0.02 < rows[TRAINED].change < 0.5
    assert rows["grounding.image_encoder"].most < 2**-8, "rounding alone"
    assert both.provenance["sources"][1] == {
        "name": str(sam2),
        "layout": "sam2",
        "files": {"sam2.pt": sha256(sam2)},
    }
    loaded, _ = load_checkpoint(both.out)
    assert loaded.grounding.propagation_decoder is loaded.grounding.propagator
    assert "its own mask decoder beside the trained one" in (both.out / "README.md").read_text()


def test_the_released_mode_is_as_without_it(both: Conversion, released: Path, tmp_path: Path) -> None:
    from salmacli.config.schema import PredictConfig
    from salmacli.engine.prediction.predictor import Predictor

    alone = convert(released, out=tmp_path / "alone").out
    video = list(np.random.default_rng(0).integers(0, 255, (8, 24, 40, 3), dtype=np.uint8))
    logits: dict[str, list[Any]] = {"sa2va": [], "consistent": []}
    for path in (alone, both.out):
        model, _ = load_checkpoint(path)
        for mode, found in logits.items():
            settings = PredictConfig(mode=mode, choice="first", key_frames=2)  # type: ignore[arg-type]
            (track,) = Predictor(model, settings).video(video, ["the cat"], answer="Sure, [SEG].", keep_logits=True)
            found.append(track.logits)
    assert np.array_equal(*logits["sa2va"])
    one, two = logits["consistent"]
    assert np.array_equal(one[:2], two[:2]) and not np.array_equal(one[2:], two[2:]), "language is the first's"


@pytest.mark.slow
def test_every_form_holds_both(both: Conversion, released: Path, sam2: Path, tmp_path: Path) -> None:
    whole = convert(released, _recipe(sam2), "pth", tmp_path / "whole.pth")
    back = convert(whole.out, None, "folder", tmp_path / "back")
    assert whole.fingerprint == back.fingerprint == both.fingerprint
    assert read_contents(back.out)[2].model == read_contents(both.out)[2].model


def test_a_decoder_that_nobody_trained_is_kept_once(released: Path, sam2_file: Sam2File) -> None:
    made = assemble(released, _recipe(sam2_file(noise=0.0)))
    assert any("still SAM 2's own, so it is kept once" in note for note in made.notes)
    assert made.contents.tensors.keys() == assemble(released, Recipe()).contents.tensors.keys()
    model = made.contents.model
    assert model["sam2"]["two_decoders"] is False and model["inference_mode"] == "sa2va"


def _fine_tuned(tensors: dict[str, Tensor]) -> None:
    tensors["memory_attention.layers.0.linear1.weight"] *= 1.01


def _wider(tensors: dict[str, Tensor]) -> None:
    name = "sam_mask_decoder.iou_prediction_head.layers.2.bias"
    tensors[name] = torch.cat([tensors[name], tensors[name]])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_fine_tuned, "1 tensors that no training of the mask decoder moves differ, in grounding.memory_attention"),
        (lambda tensors: tensors.pop("no_mem_embed"), "SAM 2's no_mem_embed"),
        (lambda tensors: tensors.pop("no_mem_pos_enc"), "1 tensors that .* differ, in grounding"),
        (_wider, "differ, in grounding.sam_mask_decoder"),
    ],
)
def test_another_sam_2_is_refused(
    released: Path, sam2_file: Sam2File, capsys: pytest.CaptureFixture[str], change: Any, told: str
) -> None:
    file = sam2_file(change=change)
    with pytest.raises(CheckpointError, match=told):
        convert(released, _recipe(file), dry_run=True)
    arguments = ["--base", str(file), "--sam2-config", str(file.parent / "sizes.json"), "--dry-run"]
    assert main(["convert", str(released), *arguments]) == 4
    capsys.readouterr()


@pytest.mark.slow
def test_a_training_on_a_released_model(
    released: Path, sam2: Path, training_file: Path, both: Conversion, tmp_path: Path
) -> None:
    made = convert(training_file, _recipe(released, sam2, lora_alpha=8.0), out=tmp_path / "salma")
    ours, file = _tensors(made.out), torch.load(training_file)["state_dict"]
    assert _equal(_decoder(ours, ORIGINAL), _decoder(torch.load(sam2)["model"], "sam_mask_decoder"))
    assert _equal(_decoder(ours, TRAINED), _decoder(file, "grounding_encoder.sam2_model.sam_mask_decoder"))
    assert read_contents(made.out)[2].model["inference_mode"] == "consistent"
    assert [one["layout"] for one in made.provenance["sources"]] == ["sa2va", "sam2"]
    rows = {row.module: row for row in made.modules}
    assert rows[TRAINED].changed == rows[TRAINED].tensors and rows[ORIGINAL].changed == rows[ORIGINAL].new == 0
    adapter = convert(training_file, _recipe(released, sam2, lora_alpha=8.0), "adapter", tmp_path / "adapter")
    assert adapter.fingerprint == made.fingerprint
    model, _ = load_checkpoint(adapter.out)
    assert model.config.model_dump(mode="json") == read_contents(made.out)[2].model
    assert fingerprint_of(read_contents(adapter.out)[2].tensors) == made.fingerprint
    header = json.loads((adapter.out / "config.json").read_text())
    header["model"]["inference_mode"] = "frames"
    (adapter.out / "config.json").write_text(json.dumps(header))
    assert read_contents(adapter.out)[2].model["inference_mode"] == "frames", "what its config says stands"
    # A base that has both already needs no SAM 2 beside it.
    on_both = assemble(training_file, Recipe((both.out,), 8.0)).contents
    assert fingerprint_of(on_both.tensors) == made.fingerprint
    assert on_both.model == model.config.model_dump(mode="json")
    with pytest.raises(CheckpointError, match=r"bring \d+ tensors \(grounding\.propagation_decoder"):
        convert(training_file, _recipe(both.out, sam2, lora_alpha=8.0), dry_run=True)


@pytest.mark.slow
def test_salmas_own_checkpoint_stays_the_same_runs(
    released: Path, sam2: Path, both: Conversion, tmp_path: Path
) -> None:
    one = replace(assemble(released, Recipe()).contents, step=9, run_config={"seed": 3}, provenance={})
    write_folder(tmp_path / "step-9", one)
    made = convert(tmp_path / "step-9", _recipe(sam2), out=tmp_path / "two")
    read = read_contents(made.out)[2]
    assert (read.step, read.run_config, made.step) == (9, {"seed": 3}, 9)
    assert read.model["sam2"]["two_decoders"] is True and read.model["inference_mode"] == "consistent"
    files = [one["files"] for one in read.provenance["sources"]]
    assert files == [
        {"model.safetensors": sha256(tmp_path / "step-9" / "model.safetensors")},
        {"sam2.pt": sha256(sam2)},
    ]
    assert _equal(_decoder(_tensors(made.out), ORIGINAL), _decoder(_tensors(both.out), ORIGINAL))
    # What has two is compared with the SAM 2, and stays what it is.
    again = convert(made.out, _recipe(sam2), dry_run=True)
    assert again.fingerprint == made.fingerprint
    assert {row.module: row.changed for row in again.modules}[ORIGINAL] == 0


def test_the_released_layout_has_place_for_one(both: Conversion, released: Path, tmp_path: Path) -> None:
    made = convert(both.out, to="sa2va", out=tmp_path / "public")
    assert any("decoder that propagates is left out" in note for note in made.notes)
    ours, theirs = load_file(made.out / "model.safetensors"), load_file(released / "model.safetensors")
    assert _equal(ours, theirs)
    back = open_source(made.out).model
    assert back["inference_mode"] == "sa2va" and back["sam2"]["two_decoders"] is False
    with pytest.raises(CheckpointError, match=r"released Sa2VA has no place for .*propagation_decoder"):
        sa2va_folder(read_contents(both.out)[2])


def test_config_and_tensors_must_agree(both: Conversion, tmp_path: Path) -> None:
    folder = convert(both.out, out=tmp_path / "copy").out
    header, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    count = len(_decoder(tensors, ORIGINAL))
    header["model"]["sam2"]["two_decoders"] = False
    (folder / "config.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match=rf"no place for {count} tensors \(grounding\.propagation_decoder"):
        load_checkpoint(folder)
    header["model"]["sam2"]["two_decoders"] = True
    (folder / "config.json").write_text(json.dumps(header))
    one = {name: tensor for name, tensor in tensors.items() if not name.startswith(ORIGINAL)}
    save_file(one, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"lacks {count} tensors \(grounding\.propagation_decoder"):
        load_checkpoint(folder)


# Training.


_SIZES = ["model.sam2.embed_dim=16", "model.sam2.width=64", "model.mask_token=best-of-three"]


def _built(monkeypatch: pytest.MonkeyPatch, sizes: Path, *settings: str) -> SalmaModel:
    def opened(name: str) -> Any:
        return open_source(name, sam2_config=sizes)

    monkeypatch.setattr(pretrained, "open_source", opened)
    config = load_config("tiny", [*_SIZES, *settings]).model.model_dump(exclude_unset=True)
    if not any(one.startswith("model.inference_mode") for one in settings):
        del config["inference_mode"]  # it is left to the base, as in the large presets
    return SalmaModel.build(ModelConfig.model_validate(config), ["the red circle"])


@pytest.fixture(scope="module")
def pieces(released: Path, sam2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings that name a released model's MLLM, alone, and a SAM 2."""
    folder = tmp_path_factory.mktemp("mllm")
    for file in released.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    kept = ("vision_model.", "mlp1.", "language_model.")
    tensors = load_file(released / "model.safetensors")
    save_file({name: one for name, one in tensors.items() if name.startswith(kept)}, folder / "model.safetensors")
    return [f"model.mllm.base={folder}", f"model.sam2.base={sam2}"]


def test_a_training_starts_with_two_equal_decoders(
    pieces: list[str], sam2: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = _built(monkeypatch, sam2.parent / "sizes.json", *pieces, "model.sam2.two_decoders=true")
    decoder, own = model.grounding.propagation_decoder, torch.load(sam2)["model"]
    assert decoder is not None and model.config.sam2.two_decoders
    assert _equal(decoder.state_dict(), _decoder(own, "sam_mask_decoder"))
    pairs = zip(decoder.parameters(), model.grounding.sam_mask_decoder.parameters(), strict=True)
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)
    again = SalmaModel.from_pretrained(model.save_pretrained(tmp_path / "saved"))
    assert _equal(again.state_dict(), model.state_dict()) and again.config == model.config
    alone = _built(monkeypatch, sam2.parent / "sizes.json", *pieces)
    assert alone.grounding.propagation_decoder is None and not alone.config.sam2.two_decoders


def test_training_moves_the_first_and_never_the_second(
    pieces: list[str], sam2: Path, small_synthetic: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from salmacli.engine.progress import Silent
    from salmacli.engine.run_folder import RunFolder
    from salmacli.engine.sources import open_mix
    from salmacli.engine.training.trainer import Trainer

    monkeypatch.setenv("SALMA_SYNTHETIC", str(small_synthetic))
    monkeypatch.setattr(
        pretrained, "open_source", lambda name: open_source(name, sam2_config=sam2.parent / "sizes.json")
    )
    told = [*_SIZES, *pieces, "model.sam2.two_decoders=true"]
    small = ["train.steps=1", "train.batch_size=2", "data.train=[{set: mevis}]", "data.decoded_frames=1"]
    settings = load_config("tiny", [*told, *small, "losses.prior=0", "model.clip_frames=2", "data.expressions=1"])
    mix = open_mix(settings.data, settings.model, settings.seed, Silent())
    run = RunFolder.create(tmp_path, "run", {"config": settings.model_dump(mode="json")})
    trainer = Trainer(settings, mix, run)
    model = trainer._model(None)
    assert model.grounding.propagation_decoder is not None
    assert not any(one.requires_grad for one in model.grounding.propagation_decoder.parameters())
    still = {name for name, one in model.grounding.sam_mask_decoder.named_parameters() if not one.requires_grad}
    assert all(name.startswith(("pred_obj_score_head.", "output_hypernetworks_mlps.")) for name in still)
    after, own = _tensors(trainer.fit().checkpoint), torch.load(sam2)["model"]
    assert _equal(_decoder(after, ORIGINAL), _decoder(own, "sam_mask_decoder"))
    moved = _decoder(after, TRAINED)
    assert any(not torch.equal(moved[name], one) for name, one in _decoder(own, "sam_mask_decoder").items())


@pytest.mark.slow
def test_a_released_model_is_trained_further_beside_its_sam_2(
    released: Path, sam2: Path, both: Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, sizes = [f"model.mllm.base={released}", f"model.sam2.base={sam2}"], sam2.parent / "sizes.json"
    model = _built(monkeypatch, sizes, *named)
    assert model.config.sam2.two_decoders and model.config.inference_mode == "consistent"
    ours = {name: one.dtype for name, one in model.state_dict().items() if "decoder" in name}
    assert ours and set(ours.values()) == {torch.float32}
    theirs = load_checkpoint(both.out)[0].state_dict()
    assert _equal(_decoder(model.state_dict(), ORIGINAL), _decoder(theirs, ORIGINAL))
    assert _equal(_decoder(model.state_dict(), TRAINED), _decoder(theirs, TRAINED))
    # What is trained further from a checkpoint with two keeps them, and its mode.
    further = _built(monkeypatch, sizes, f"model.mllm.base={both.out}")
    assert further.config.sam2.two_decoders and further.config.inference_mode == "consistent"
    assert _built(monkeypatch, sizes, *named, "model.inference_mode=frames").config.inference_mode == "frames"
    with pytest.raises(ConfigError, match="nothing brings SAM 2's original mask decoder"):
        _built(monkeypatch, sizes, f"model.mllm.base={released}", "model.sam2.two_decoders=true")


def test_a_second_decoder_never_starts_fresh() -> None:
    with pytest.raises(ConfigError, match=r"nothing brings SAM 2's .* name a pretrained SAM 2 as model\.sam2\.base"):
        SalmaModel.build(load_config("tiny", ["model.sam2.two_decoders=true"]).model, ["the red circle"])


# Types.


def test_a_model_in_bfloat16_keeps_its_tables_of_positions(both: Conversion) -> None:
    model, _ = load_checkpoint(both.out, dtype=torch.bfloat16)
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    matrix = "grounding.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    buffers = dict(model.named_buffers())
    assert {name for name in buffers if name in model.state_dict()} == {matrix}
    assert {one.dtype for one in buffers.values() if one.is_floating_point()} == {torch.float32}
    assert [name for name in buffers if name.endswith("rotary_emb.inv_freq")]
    attentions = [one for one in model.grounding.modules() if hasattr(one, "freqs_cis")]
    assert attentions and {one.freqs_cis.dtype for one in attentions} == {torch.complex64}
    assert model.grounding.propagation_decoder is not None
    whole = load_checkpoint(both.out)[0]
    assert all(torch.equal(buffers[name], one) for name, one in whole.named_buffers())
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    assert all(torch.equal(one, other.bfloat16()) for one, other in pairs)


@pytest.mark.slow
def test_converting_keeps_types_and_a_cast_keeps_the_table(
    tiny_model: Any, both: Conversion, released: Path, tmp_path: Path
) -> None:
    def types(path: Path) -> dict[str, torch.dtype]:
        return {name: lazy.dtype for name, lazy in read_contents(path)[2].tensors.items()}

    mixed = types(both.out)
    assert {one for name, one in mixed.items() if name.startswith(ORIGINAL)} == {torch.float32}
    assert {one for name, one in mixed.items() if not name.startswith(ORIGINAL)} == {torch.bfloat16}
    assert types(convert(both.out, None, "pth", tmp_path / "mixed.pth").out) == mixed
    matrix = "grounding.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    save_checkpoint(tmp_path / "run", tiny_model, config={}, step=0)
    half = convert(tmp_path / "run", Recipe(dtype=torch.bfloat16), out=tmp_path / "half").out
    assert {name for name, one in types(half).items() if one is not torch.bfloat16} == {matrix}
    assert torch.equal(_tensors(half)[matrix], tiny_model.state_dict()[matrix])
    wide = convert(released, Recipe(dtype=torch.float32), out=tmp_path / "wide").out
    assert set(types(wide).values()) == {torch.float32}
