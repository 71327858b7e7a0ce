from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from salmacli.checkpoints.combine import combine, fitted
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.layouts import Layout
from salmacli.checkpoints.load import build_model
from salmacli.checkpoints.sources.key_maps import EMBEDDING, HEAD
from salmacli.checkpoints.sources.opening import open_source
from salmacli.checkpoints.sources.parts import Parts
from salmacli.errors import CheckpointError

CMA = {"cma": {"enabled": True, "heads": 4}}


@pytest.fixture(scope="module")
def whole(released: Path) -> Parts:
    return open_source(released)


def _only(part: Parts, *prefixes: str, layout: Layout, **sections) -> Parts:
    tensors = {name: tensor for name, tensor in part.tensors.items() if name.startswith(prefixes)}
    model = {key: part.model[key] for key in sections.pop("keep", ())}
    return replace(part, layout=layout, tensors=tensors, model=model, **sections)


@pytest.fixture(scope="module")
def pieces(whole: Parts) -> list[Parts]:
    mllm = _only(whole, "mllm.", layout=Layout.INTERNVL, keep=("mllm",), name="internvl", notes=("said",))
    sam2 = _only(whole, "grounding.", layout=Layout.SAM2, keep=("sam2",), name="sam2", tokenizer={})
    return [mllm, sam2]


def test_a_whole_model_stays_what_it_is(whole: Parts, released: Path) -> None:
    made = combine([whole])
    assert made.tensors.keys() == whole.tensors.keys()
    assert all(made.tensors[name] is whole.tensors[name] for name in whole.tensors)
    assert made.model["inference_mode"] == "sa2va"
    (source,) = made.provenance["sources"]
    digest = hashlib.sha256((released / "model.safetensors").read_bytes()).hexdigest()
    assert combine([whole]).provenance["sources"][0] is source, "files are hashed once"
    assert source == {"name": str(released), "layout": "sa2va", "files": {"model.safetensors": digest}}


def test_pieces_get_a_fresh_projector_and_say_so(pieces: list[Parts]) -> None:
    one, again, other = combine(pieces), combine(pieces), combine(pieces, seed=1)
    name = "text_hidden_fcs.0.weight"
    assert torch.equal(one.tensors[name].read(), again.tensors[name].read())
    assert not torch.equal(one.tensors[name].read(), other.tensors[name].read())
    notes = one.provenance["notes"]
    assert "internvl: said" in notes
    assert any("text_hidden_fcs starts fresh (seed 0)" in note for note in notes)
    assert one.model["inference_mode"] == "consistent"


def test_a_released_model_gets_a_fresh_attention_when_asked(whole: Parts) -> None:
    made = combine([whole], CMA)
    assert made.tensors["cma.gamma"].read() == 0
    assert any("cma starts fresh" in note for note in made.provenance["notes"])
    broken = replace(whole, model={**whole.model, **CMA})
    with pytest.raises(CheckpointError, match=r"lacks 13 tensors \(cma\."):
        combine([broken])


def test_new_tokens_get_rows(pieces: list[Parts]) -> None:
    mllm, sam2 = pieces
    rows = mllm.tensors[EMBEDDING].shape[0]
    short = {name: mllm.tensors[name].then(lambda t: t[:-5], (rows - 5, 128)) for name in (EMBEDDING, HEAD)}
    made = combine([replace(mllm, tensors={**mllm.tensors, **short}), sam2])
    for name in (EMBEDDING, HEAD):
        new, old = made.tensors[name].read(), mllm.tensors[name].read()
        assert new.shape == old.shape == made.tensors[name].shape
        assert torch.equal(new[:-5], old[:-5])
        assert new.dtype == old.dtype
        assert len(torch.unique(new[-5:], dim=0)) == 5
    assert made.model["mllm"]["native"]["text_config"]["vocab_size"] == rows
    assert sum("5 fresh rows" in note for note in made.provenance["notes"]) == 2


def test_a_training_must_bring_its_own_rows(whole: Parts) -> None:
    rows = whole.tensors[EMBEDDING].shape[0]
    for count in (rows - 1, rows + 1):
        with pytest.raises(CheckpointError, match=f"{count} rows, but with the special tokens there are {rows} tokens"):
            combine([whole], trained={EMBEDDING: LazyTensor.of(torch.zeros(count, 128))})


def test_a_training_unties_a_head(whole: Parts) -> None:
    native = {**whole.model["mllm"]["native"], "tie_word_embeddings": True}
    tensors = {name: tensor for name, tensor in whole.tensors.items() if name != HEAD}
    tied = replace(whole, tensors=tensors, model={**whole.model, "mllm": {"native": native}})
    assert HEAD not in combine([tied]).tensors
    own = combine([tied], trained={HEAD: LazyTensor.of(torch.ones(whole.tensors[HEAD].shape))})
    assert own.model["mllm"]["native"]["tie_word_embeddings"] is False
    assert HEAD in own.tensors
    assert any("head weights of its own" in note for note in own.provenance["notes"])
    same = combine([tied], trained={HEAD: whole.tensors[EMBEDDING]})
    assert same.model["mllm"]["native"]["tie_word_embeddings"] is True
    with pytest.raises(CheckpointError, match=r"ties mllm\.model\.lm_head\.weight to .* but they differ"):
        fitted(whole.tensors, build_model(combine([tied]), Path("file")), "file")


def test_gaps_overlaps_and_leftovers_are_named(whole: Parts, pieces: list[Parts]) -> None:
    mllm, sam2 = pieces
    with pytest.raises(CheckpointError, match=r"there is no SAM 2; .*--base"):
        combine([mllm])
    with pytest.raises(CheckpointError, match=r"no multimodal LLM.*--base"):
        combine([sam2])
    with pytest.raises(CheckpointError, match=r"both .*Sa2VA-tiny and sam2 bring \d+ tensors \(grounding\."):
        combine([whole, sam2])
    tensors = dict(whole.tensors)
    tensors["grounding.extra"] = tensors.pop("grounding.no_mem_embed")
    with pytest.raises(CheckpointError) as caught:
        combine([replace(whole, tensors=tensors)])
    assert "lacks 1 tensor (grounding.no_mem_embed)" in str(caught.value)
    assert "no place for 1 tensor (grounding.extra)" in str(caught.value)
    reshaped = {**whole.tensors, "text_hidden_fcs.0.bias": LazyTensor.of(torch.ones(3))}
    with pytest.raises(CheckpointError, match=r"text_hidden_fcs\.0\.bias \(3,\) for \(128,\)"):
        combine([replace(whole, tensors=reshaped)])
    partial = {name: tensor for name, tensor in whole.tensors.items() if name != "text_hidden_fcs.2.bias"}
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor \(text_hidden_fcs\.2\.bias\)"):
        combine([replace(whole, tensors=partial)])


def test_a_config_that_describes_no_model(whole: Parts) -> None:
    with pytest.raises(CheckpointError, match=r"no model can be made of what it says \(model\.clip_frames"):
        combine([whole], {"clip_frames": 0})
    for section in ("mllm", "sam2"):
        with pytest.raises(CheckpointError, match="there is no"):
            combine([replace(whole, model={**whole.model, section: None})])
