"""Tests for every fault of the notes that concerns the attention (see the module's docstring), and for every option."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml

from salmacli.config.schema import CmaConfig
from salmacli.models.cma import ChannelGate, CrossModalAttention2D
from salmacli.models.grounding import Decodable
from salmacli.models.routing import TopKRouter

WIDTH, MASKS, WORDS, SIDE = 32, 3, 5, 4
ROWS = yaml.safe_load((Path(__file__).parent / "cma_options.yaml").read_text(encoding="utf-8"))
VALUES = {
    "pooling": ("tokens", "mean", "cls", "attention"),
    "topk": (1, 2, None),
    "mba": ("gate", "bias", "off"),
    "layers": (1, 2, 3),
    "levels": ([16], [16, 8], [16, 4], [16, 8, 4]),
    "adaptive_gate": (False, True),
    "film": (False, True),
    "decoder_fusion": (False, True),
    "mask_token": ("single", "best-of-three"),
}
every_combination = pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))


def attention(gamma: float = 0.7, **config: object) -> CrossModalAttention2D:
    torch.manual_seed(0)
    options = {name: value for name, value in config.items() if name != "mask_token"}
    module = CrossModalAttention2D(WIDTH, CmaConfig(enabled=True, heads=4, **options))  # type: ignore[arg-type]
    for name, parameter in module.named_parameters():
        if name.endswith("gamma"):
            parameter.data.fill_(gamma)
    return module


def rows_of(module: CrossModalAttention2D, inputs: dict[str, torch.Tensor]) -> tuple[Decodable, Decodable]:
    """The frames before and after; with a level that decodes them beside, so that all of them can be compared."""
    given = dict(inputs)
    before = Decodable(given.pop("x"), (given.pop("stride4"), given.pop("stride8")))
    return before, module(before, **given)


def image(module: CrossModalAttention2D, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return rows_of(module, inputs)[1].image


def added(module: CrossModalAttention2D, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return image(module, inputs) - inputs["x"]


def levels(rows: Decodable) -> list[torch.Tensor]:
    """All that the decoder reads, and what it would make of the same mask features."""
    features = torch.linspace(-1, 1, MASKS * 4 * 16 * 16).view(MASKS, 4, 16, 16)
    return [rows.image, *rows.fine, features if rows.fuse is None else rows.fuse(features)]


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "x": random(MASKS, WIDTH, SIDE, SIDE),
        "stride4": random(MASKS, WIDTH // 8, 4 * SIDE, 4 * SIDE),
        "stride8": random(MASKS, WIDTH // 4, 2 * SIDE, 2 * SIDE),
        "words": random(MASKS, WORDS, WIDTH),
        "words_valid": torch.ones(MASKS, WORDS, dtype=torch.bool),
        "seg": random(MASKS, WIDTH),
        "prior": random(MASKS, 4 * SIDE, 4 * SIDE),
    }


def test_the_rows_cover_every_pair_of_values():
    wanted = {
        (one, str(a), other, str(b))
        for one, other in itertools.combinations(VALUES, 2)
        for a, b in itertools.product(VALUES[one], VALUES[other])
    }
    found = {(a, str(row[a]), b, str(row[b])) for row in ROWS for a, b in itertools.combinations(VALUES, 2)}
    assert found == wanted
    options = CmaConfig.model_fields.keys() - {"enabled", "tau", "heads", "warmup_fraction"}
    assert options == VALUES.keys() - {"mask_token"}


@every_combination
def test_identity_at_gamma_zero_bit_for_bit(inputs, row):
    before, after = rows_of(attention(0.0, **row), inputs)
    assert all(torch.equal(a, b) for a, b in zip(levels(before), levels(after), strict=True))


@every_combination
def test_whatever_is_asked_for_changes_and_nothing_else(inputs, row):
    before, after = rows_of(attention(**row), inputs)
    changed = [not torch.equal(a, b) for a, b in zip(levels(before), levels(after), strict=True)]
    assert changed == [True, 4 in row["levels"], 8 in row["levels"], row["decoder_fusion"]]


@every_combination
def test_every_parameter_learns(inputs, row):
    """None is there that has no effect. At gamma = 0, and while it warms up, gamma itself does."""
    module = attention(**row)
    sum(level.square().sum() for level in levels(rows_of(module, inputs)[1])).backward()
    silent = [
        n for n, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    # What is the same for all tokens cancels in a softmax over them; but not against the null key.
    cancels = ("router.score.bias",) if row["mba"] == "bias" else ("router.score.bias", "key.bias")
    assert [name for name in silent if not name.endswith(cancels)] == []
    fresh = attention(0.0, **row)
    fresh.warm_up(0, 1000)
    sum(level.square().sum() for level in levels(rows_of(fresh, inputs)[1])).backward()
    gammas = {n: p.grad for n, p in fresh.named_parameters() if n.endswith("gamma")}
    assert len(gammas) == len(row["levels"]) + row["decoder_fusion"]
    assert all(gradient is not None and gradient.any() for gradient in gammas.values())


@every_combination
def test_a_row_does_not_depend_on_the_others(inputs, row):
    module = attention(**row)
    whole = rows_of(module, inputs)[1]
    alone = rows_of(module, {name: value[1:2] for name, value in inputs.items()})[1]
    pairs = zip((whole.image, *whole.fine), (alone.image, *alone.fine), strict=True)
    assert all(torch.allclose(a[1:2], b, atol=1e-5) for a, b in pairs)


def test_default_options_add_no_parameter():
    names = {"gamma", "router.score.weight", "router.score.bias"}
    names |= {f"{part}.{p}" for part in ("norm", "query", "key", "value", "out") for p in ("weight", "bias")}
    assert attention().state_dict().keys() == names


def test_different_pixels_get_different_vectors(inputs):
    """With one key the softmax is 1 everywhere and every pixel gets the same vector, as with one token in the notes."""
    assert added(attention(mba="off", topk=None), inputs).flatten(2).std(dim=2).mean() > 1e-3
    for pooling in ("cls", "mean", "attention"):
        assert added(attention(mba="off", pooling=pooling), inputs).flatten(2).std(dim=2).max() < 1e-6


@pytest.mark.parametrize("pooling", ["tokens", "attention"])
@pytest.mark.parametrize("topk", [1, 2, 4])
def test_router_gets_a_gradient(inputs, topk, pooling):
    module = attention(topk=topk, pooling=pooling)
    image(module, inputs).square().sum().backward()
    score = cast(Any, module.router.score)
    assert score.weight.grad.abs().sum() > 0


def test_one_token_differs_from_two(inputs):
    one, two = attention(topk=1), attention(topk=2)
    assert not torch.allclose(image(one, inputs), image(two, inputs), atol=1e-4)


def test_router_keeps_all_when_there_are_fewer_than_k(inputs):
    wide, all_of_them = attention(topk=50), attention(topk=None)
    assert torch.equal(image(wide, inputs), image(all_of_them, inputs))


def test_router_breaks_ties_by_order_and_never_prefers_padding():
    router = TopKRouter(WIDTH, 2)
    torch.nn.init.zeros_(cast(Any, router.score).weight)
    tokens = torch.arange(4.0).view(1, 4, 1).expand(1, 4, WIDTH)
    kept = router(tokens, torch.tensor([[False, True, True, True]]))
    assert kept.tokens[0, :, 0].tolist() == [1.0, 2.0]
    short = router(tokens, torch.tensor([[False, False, False, True]]))
    assert short.log_weight[0, 0] == 0 and short.log_weight[0, 1] == float("-inf")


@pytest.mark.parametrize(("pooling", "pooled"), [("mean", 2.0), ("cls", 3.0), ("attention", 2.75)])
def test_pooled_text_is_one_vector(pooling, pooled):
    """Of the tokens 1, 2 and 3, the last of which is [SEG]; the first stands on padding's place."""
    router = TopKRouter(WIDTH, 2, pooling)
    if router.score is not None:
        # Scores that make each token three times as probable as the one before: 1/13, 3/13, 9/13.
        torch.nn.init.zeros_(router.score.weight)
        router.score.weight.data[0, 0] = math.log(3)
    tokens = torch.tensor([9.0, 1.0, 2.0, 3.0]).view(1, 4, 1).expand(1, 4, WIDTH)
    with torch.no_grad():
        text = router(tokens, torch.tensor([[False, True, True, True]]))
    assert text.tokens.shape == (1, 1, WIDTH) and text.log_weight.tolist() == [[0.0]]
    assert float(text.tokens[0, 0, 0]) == pytest.approx(pooled)
    assert float(text.mean[0, 0]) == pytest.approx(2.0)
    assert float(text.mass) == pytest.approx(12 / 13 if pooling == "attention" else 1)


def test_cls_reads_seg_alone(inputs):
    module = attention(pooling="cls")
    assert torch.equal(image(module, inputs), image(module, {**inputs, "words": inputs["words"] + 1}))
    assert not torch.allclose(image(module, inputs), image(module, {**inputs, "seg": inputs["seg"] + 1}), atol=1e-3)


@every_combination
def test_padding_changes_nothing(inputs, row):
    longer = dict(inputs)
    longer["words"] = torch.cat([inputs["words"], torch.full((MASKS, 2, WIDTH), 9.0)], dim=1)
    longer["words_valid"] = torch.cat([inputs["words_valid"], torch.zeros(MASKS, 2, dtype=torch.bool)], dim=1)
    module = attention(**row)
    for one, other in zip(levels(rows_of(module, inputs)[1]), levels(rows_of(module, longer)[1]), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@every_combination
def test_expressions_without_words_have_their_seg(inputs, row):
    wordless = {**inputs, "words": inputs["words"][:, :0], "words_valid": inputs["words_valid"][:, :0]}
    assert all(level.isfinite().all() for level in levels(rows_of(attention(**row), wordless)[1]))


def test_bias_mode_changes_the_output(inputs):
    """A constant on all text keys cancels in the softmax; against the null key it moves attention."""
    for pooling in VALUES["pooling"]:
        module = attention(mba="bias", pooling=pooling)
        other = {**inputs, "prior": inputs["prior"] + 3}
        assert not torch.allclose(image(module, inputs), image(module, other), atol=1e-4)
        nowhere = added(module, {**inputs, "prior": torch.full_like(inputs["prior"], -80.0)})
        # What is left is the output projection's bias, the same for every pixel: nothing of the text.
        assert torch.allclose(nowhere, nowhere[:, :, :1, :1].expand_as(nowhere), atol=1e-5)


def test_gate_follows_the_prior(inputs):
    closed = {**inputs, "prior": torch.full_like(inputs["prior"], -80.0)}
    module = attention(mba="gate", levels=(16, 8, 4), film=True, decoder_fusion=True)
    before, after = rows_of(module, closed)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(levels(before), levels(after), strict=True))
    cold, warm = attention(mba="gate", tau=0.1), attention(mba="gate", tau=10.0)
    assert not torch.allclose(image(cold, inputs), image(warm, inputs), atol=1e-4)
    assert torch.equal(image(attention(mba="off"), inputs), image(attention(mba="off"), closed))


def test_the_prior_gets_no_gradient(inputs):
    """Or language would leak into what guides it."""
    prior = inputs["prior"].requires_grad_()
    module = attention(adaptive_gate=True, levels=(16, 8, 4), decoder_fusion=True)
    sum(level.sum() for level in levels(rows_of(module, inputs)[1])).backward()
    assert prior.grad is None


def test_large_objects_get_half(inputs):
    """Strength 1 − 0.5 · area of the prior, of each row by itself."""
    plain, adaptive = attention(mba="off"), attention(mba="off", adaptive_gate=True)
    prior = torch.full_like(inputs["prior"], -80.0)
    prior[1], prior[2, :, :8] = 80.0, 80.0
    with_areas = {**inputs, "prior": prior}
    shares = torch.tensor([1, 0.5, 0.75]).view(3, 1, 1, 1)
    assert torch.allclose(added(adaptive, with_areas), shares * added(plain, with_areas), atol=1e-5)


def test_layers_are_the_same_attention_again(inputs):
    once, thrice = attention(layers=1), attention(layers=3)
    assert once.state_dict().keys() == thrice.state_dict().keys()
    again = inputs
    for _ in range(3):
        again = {**again, "x": image(once, again)}
    assert torch.allclose(image(thrice, inputs), again["x"], atol=1e-5)


def test_finer_levels_have_fewer_heads_of_the_same_width():
    module = CrossModalAttention2D(256, CmaConfig(enabled=True, levels=(16, 8, 4), decoder_fusion=True))
    parts = [module, module.finer["stride8"], module.finer["stride4"], module.fusion]
    assert [(part.heads, part.out.out_features) for part in cast(Any, parts)] == [(8, 256), (2, 64), (1, 32), (1, 32)]


def test_a_channel_gate_opens_and_closes_whole_channels(inputs):
    module = attention(levels=(16, 8), mba="off")
    last = cast(Any, module.finer["stride8"]).gate.excite[-1]
    torch.nn.init.zeros_(last.weight)
    last.bias.data.copy_(torch.tensor([80.0] * 3 + [-80.0] * 5))
    before, after = rows_of(module, inputs)
    changed = (after.fine[1] - before.fine[1]).abs().amax((0, 2, 3))
    assert bool((changed[:3] > 1e-4).all()) and not bool(changed[3:].any())


def test_a_channel_gate_is_one_for_the_whole_frame():
    torch.manual_seed(0)
    message = torch.randn(2, 16, 8)
    share = ChannelGate(8)(message, message) / message
    assert torch.allclose(share, share[:, :1].expand_as(share)) and not torch.allclose(share[0], share[1])


def test_a_fusion_gate_sees_the_pixels(inputs):
    module = attention(decoder_fusion=True, mba="off", pooling="cls")
    rows = rows_of(module, inputs)[1]
    assert rows.fuse is not None
    flat, other = torch.zeros(MASKS, 4, 16, 16), torch.zeros(MASKS, 4, 16, 16)
    other[:, :, :8] = 3
    assert (rows.fuse(flat) - flat).flatten(2).std(dim=2).max() < 1e-6, "the text says the same to all pixels"
    assert (rows.fuse(other) - other).flatten(2).std(dim=2).max() > 1e-3


def test_film_scales_and_shifts_channels_by_the_mean_of_the_text(inputs):
    module, plain = attention(film=True, mba="off"), attention(mba="off")
    plain.load_state_dict({name: module.state_dict()[name] for name in plain.state_dict()})
    film, norm = cast(Any, module.film), cast(Any, module.norm)
    mean = torch.cat([inputs["words"], inputs["seg"][:, None]], dim=1).mean(1)
    scale, shift = film(mean)[:, :, None, None].chunk(2, dim=1)
    normed = norm(inputs["x"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    mass = module.router(
        torch.cat([inputs["words"], inputs["seg"][:, None]], dim=1), torch.ones(MASKS, WORDS + 1, dtype=torch.bool)
    ).mass.unsqueeze(-1)
    expected = added(plain, inputs) + 0.7 * mass * (normed * scale + shift)
    assert torch.allclose(added(module, inputs), expected, atol=1e-5)


def test_warm_up_never_is_zero_and_ends_at_one():
    module = attention(warmup_fraction=0.1)
    scales = []
    for step in range(100):
        module.warm_up(step, 100)
        scales.append(module.scale)
    assert scales[0] == pytest.approx(0.1) and scales[9] == 1 and max(scales) == 1
    assert not [name for name in module.state_dict() if "scale" in name]


def test_warm_up_scales_what_is_added_everywhere(inputs):
    module = attention(topk=None, levels=(16, 8, 4), decoder_fusion=True)
    before, full = rows_of(module, inputs)
    module.warm_up(0, 100)
    for x, tenth, whole in zip(levels(before), levels(rows_of(module, inputs)[1]), levels(full), strict=True):
        assert torch.allclose((tenth - x) * 10, whole - x, atol=1e-4)


def test_the_router_hears_of_every_token_before_it_chooses(inputs):
    module, everything = attention(topk=1), attention(topk=None)
    module.warm_up(0, 100)
    everything.warm_up(0, 100)
    assert torch.equal(image(module, inputs), image(everything, inputs))
    module.warm_up(99, 100)
    everything.warm_up(99, 100)
    assert not torch.allclose(image(module, inputs), image(everything, inputs), atol=1e-4)


def test_rows_are_chosen_before_they_attend(inputs):
    rows = rows_of(attention(decoder_fusion=True), inputs)[1]
    with pytest.raises(AssertionError, match="before they attend"):
        rows.at(slice(1))
    assert len(replace(rows, fuse=None).at(slice(1))) == 1
