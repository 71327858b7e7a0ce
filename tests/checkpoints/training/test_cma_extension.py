from __future__ import annotations

import pytest
import torch
from torch import nn

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.training.cma_extension import extension_to_salma, split_extension
from salmacli.config.schema import CmaConfig
from salmacli.errors import CheckpointError
from salmacli.models.cma import CrossModalAttention2D
from salmacli.models.grounding import Decodable

WIDTH = 32


class Theirs(nn.Module):
    """The extension's parts, as far as its file shows them."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, 8, batch_first=True)
        self.ln = nn.LayerNorm(WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.token_gate = nn.Linear(WIDTH, 1)
        self.gamma_attn = nn.Parameter(torch.tensor(0.3))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def file(self, scalars: str = "grounding_encoder.cma.") -> dict[str, torch.Tensor]:
        """Its tensors as a training file names them."""
        found = {}
        for name, tensor in self.state_dict().items():
            found[(scalars if name == "gamma_attn" else "grounding_encoder.cma.") + name] = tensor
        return {**found, f"{scalars}gamma": self.gamma_attn.detach(), f"{scalars}_gamma_scale": torch.tensor(1.0)}


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    torch.manual_seed(0)
    return Theirs()


def _lazy(tensors: dict[str, torch.Tensor]) -> dict[str, LazyTensor]:
    return {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}


def _convert(tensors: dict[str, torch.Tensor]):
    extension, others = split_extension(_lazy(tensors))
    assert not others
    return extension_to_salma(extension, "file")


@pytest.mark.parametrize("scalars", ["grounding_encoder.cma.", "grounding_encoder.", ""])
def test_every_tensor_finds_its_place(theirs: Theirs, scalars: str) -> None:
    found, config, notes = _convert(theirs.file(scalars))
    ours = CrossModalAttention2D(WIDTH, CmaConfig(**config))
    ours.load_state_dict({name.removeprefix("cma."): lazy.read() for name, lazy in found.items()})  # strict
    assert all(lazy.shape == tuple(lazy.read().shape) for lazy in found.values())
    assert any("outputs differ" in note for note in notes)
    assert "the file does not say the number of heads nor top-k of its attention: 8 and 2 are taken" in notes


def test_the_attention_itself_computes_the_same(theirs: Theirs) -> None:
    """With every token kept at equal weight and no prior, ours is their attention followed by their projection."""
    found, config, _ = _convert(theirs.file())
    ours = CrossModalAttention2D(WIDTH, CmaConfig(**config, topk=None).model_copy(update={"mba": "off"}))
    ours.load_state_dict({name.removeprefix("cma."): lazy.read() for name, lazy in found.items()})
    nn.init.zeros_(ours.router.score.weight)
    x, words, seg = torch.randn(2, WIDTH, 3, 3), torch.randn(2, 4, WIDTH), torch.randn(2, WIDTH)
    valid = torch.ones(2, 4, dtype=torch.bool)
    fine = torch.randn(2, WIDTH // 8, 12, 12), torch.randn(2, WIDTH // 4, 6, 6)
    flat, keys = x.flatten(2).transpose(1, 2), torch.cat([words, seg[:, None]], 1)
    with torch.no_grad():
        attended = theirs.proj(theirs.attn(theirs.ln(flat), keys, keys)[0])
        expected = (flat + theirs.gamma_attn * attended).transpose(1, 2).reshape(x.shape)
        found = ours(Decodable(x, fine), words, valid, seg, torch.zeros(2, 3, 3))
    torch.testing.assert_close(found.image, expected, rtol=1e-5, atol=1e-5)
    assert found.fine == fine and found.fuse is None  # the extension knows one level only


def test_a_projection_by_convolution(theirs: Theirs) -> None:
    tensors = theirs.file()
    tensors["grounding_encoder.cma.proj.weight"] = tensors["grounding_encoder.cma.proj.weight"][..., None, None]
    plain, _, _ = _convert(theirs.file())
    assert torch.equal(_convert(tensors)[0]["cma.out.weight"].read(), plain["cma.out.weight"].read())


def test_film_that_does_nothing_is_left_out_and_said(theirs: Theirs) -> None:
    tensors = theirs.file() | {
        "grounding_encoder.cma.gamma_film": torch.zeros(1),
        "grounding_encoder.cma.film_mlp.0.weight": torch.ones(2, 2),
        "grounding_encoder.cma._gamma_scale": torch.tensor(0.25),
    }
    found, _, notes = _convert(tensors)
    assert not any("film" in name for name in found)
    assert any("film_mlp.0.weight" in note for note in notes)
    assert any("scale 0.25" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gamma_film": torch.ones(1), "film_mlp.0.weight": torch.ones(2, 2)}, "modulates features"),
        ({"film_mlp.0.weight": torch.ones(2, 2)}, "modulates features"),
        ({"gamma": torch.tensor(5.0)}, "differ"),
        ({"gamma": None, "gamma_attn": None}, "lacks gamma_attn"),
        ({"gamma_attn": torch.ones(WIDTH), "gamma": torch.ones(WIDTH)}, "not one number"),
        ({"ln.bias": None}, r"lacks 1 tensor \(ln\.bias\)"),
        ({"proj.2.weight": torch.ones(1)}, r"1 tensor \(proj\.2\.weight\)"),
        ({"token_gate.weight": torch.ones(2, WIDTH)}, "token_gate.weight"),
        ({"proj.weight": torch.ones(2, WIDTH)}, "proj of the cross-modal attention"),
    ],
)
def test_what_does_not_fit_is_named(theirs: Theirs, changes: dict[str, torch.Tensor | None], told: str) -> None:
    tensors = theirs.file()
    for name, tensor in changes.items():
        tensors.pop(f"grounding_encoder.cma.{name}", None)
        if tensor is not None:
            tensors[f"grounding_encoder.cma.{name}"] = tensor
    with pytest.raises(CheckpointError, match=told):
        _convert(tensors)


def test_other_gammas_stay_what_they_are() -> None:
    names = ("grounding_encoder.sam2_model.memory_encoder.fuser.layers.0.gamma", "text_hidden_fcs.0.weight")
    extension, others = split_extension(_lazy({name: torch.ones(1) for name in names}))
    assert not extension
    assert tuple(others) == names
