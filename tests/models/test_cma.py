"""One test for every fault of the notes that concerns the attention (see the module's docstring)."""

from __future__ import annotations

import pytest
import torch

from salmacli.config.schema import CmaConfig
from salmacli.models.cma import CrossModalAttention2D, TopKRouter

WIDTH, MASKS, WORDS, SIDE = 32, 3, 5, 4


def attention(gamma: float = 0.7, **config: object) -> CrossModalAttention2D:
    torch.manual_seed(0)
    module = CrossModalAttention2D(WIDTH, CmaConfig(enabled=True, heads=4, **config))  # type: ignore[arg-type]
    module.gamma.data.fill_(gamma)
    return module


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "x": random(MASKS, WIDTH, SIDE, SIDE),
        "words": random(MASKS, WORDS, WIDTH),
        "words_valid": torch.ones(MASKS, WORDS, dtype=torch.bool),
        "seg": random(MASKS, WIDTH),
        "prior": random(MASKS, SIDE, SIDE),
    }


@pytest.mark.parametrize("mba", ["gate", "bias", "off"])
def test_identity_at_gamma_zero_bit_for_bit(inputs, mba):
    assert torch.equal(attention(0.0, mba=mba)(**inputs), inputs["x"])
    assert not torch.equal(attention(0.1, mba=mba)(**inputs), inputs["x"])


def test_different_pixels_get_different_vectors(inputs):
    """With one key the softmax is 1 everywhere and every pixel would get the same vector."""
    added = attention(mba="off", topk=None)(**inputs) - inputs["x"]
    assert added.flatten(2).std(dim=2).mean() > 1e-3


@pytest.mark.parametrize("topk", [1, 2, 4])
def test_router_gets_a_gradient(inputs, topk):
    module = attention(topk=topk)
    module(**inputs).square().sum().backward()
    assert module.router.score.weight.grad.abs().sum() > 0


def test_one_token_differs_from_two(inputs):
    one, two = attention(topk=1), attention(topk=2)
    assert not torch.allclose(one(**inputs), two(**inputs), atol=1e-4)


def test_router_keeps_all_when_there_are_fewer_than_k(inputs):
    wide, all_of_them = attention(topk=50), attention(topk=None)
    assert torch.equal(wide(**inputs), all_of_them(**inputs))


def test_router_breaks_ties_by_order_and_never_prefers_padding():
    router = TopKRouter(WIDTH, 2)
    torch.nn.init.zeros_(router.score.weight)
    tokens = torch.arange(4.0).view(1, 4, 1).expand(1, 4, WIDTH)
    kept = router(tokens, torch.tensor([[False, True, True, True]]))
    assert kept.tokens[0, :, 0].tolist() == [1.0, 2.0]
    short = router(tokens, torch.tensor([[False, False, False, True]]))
    assert short.log_weight[0, 0] == 0 and short.log_weight[0, 1] == float("-inf")


def test_padding_changes_nothing(inputs):
    longer = dict(inputs)
    longer["words"] = torch.cat([inputs["words"], torch.full((MASKS, 2, WIDTH), 9.0)], dim=1)
    longer["words_valid"] = torch.cat([inputs["words_valid"], torch.zeros(MASKS, 2, dtype=torch.bool)], dim=1)
    for topk in (2, None):
        module = attention(topk=topk)
        assert torch.allclose(module(**inputs), module(**longer), atol=1e-5)


def test_bias_mode_changes_the_output(inputs):
    """A constant on all text keys cancels in the softmax; against the null key it moves attention."""
    module = attention(mba="bias")
    other = {**inputs, "prior": inputs["prior"] + 3}
    assert not torch.allclose(module(**inputs), module(**other), atol=1e-4)
    nowhere = module(**{**inputs, "prior": torch.full_like(inputs["prior"], -80.0)}) - inputs["x"]
    # What is left is the output projection's bias, the same for every pixel: nothing of the text.
    assert torch.allclose(nowhere, nowhere[:, :, :1, :1].expand_as(nowhere), atol=1e-5)


def test_gate_follows_the_prior(inputs):
    module = attention(mba="gate")
    closed = {**inputs, "prior": torch.full_like(inputs["prior"], -80.0)}
    assert torch.allclose(module(**closed), inputs["x"], atol=1e-6)
    cold, warm = attention(mba="gate", tau=0.1), attention(mba="gate", tau=10.0)
    assert not torch.allclose(cold(**inputs), warm(**inputs), atol=1e-4)
    assert torch.equal(attention(mba="off")(**inputs), attention(mba="off")(**closed))


def test_warm_up_never_is_zero_and_ends_at_one():
    module = attention(warmup_fraction=0.1)
    scales = []
    for step in range(100):
        module.warm_up(step, 100)
        scales.append(module.scale)
    assert scales[0] == pytest.approx(0.1) and scales[9] == 1 and max(scales) == 1
    assert not [name for name in module.state_dict() if "scale" in name]


def test_warm_up_scales_what_is_added(inputs):
    module = attention(topk=None)
    full = module(**inputs) - inputs["x"]
    module.warm_up(0, 100)
    assert torch.allclose((module(**inputs) - inputs["x"]) * 10, full, atol=1e-4)


def test_the_router_hears_of_every_token_before_it_chooses(inputs):
    module, everything = attention(topk=1), attention(topk=None)
    module.warm_up(0, 100)
    everything.warm_up(0, 100)
    assert torch.equal(module(**inputs), everything(**inputs))
    module.warm_up(99, 100)
    everything.warm_up(99, 100)
    assert not torch.allclose(module(**inputs), everything(**inputs), atol=1e-4)
