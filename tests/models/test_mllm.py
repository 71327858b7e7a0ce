"""Every family against transformers' own full forward pass, at a size that takes a moment."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from transformers import Qwen2VLImageProcessor

from salmacli.config.loading import load_config
from salmacli.config.schema import MllmConfig, PredictConfig
from salmacli.data.collate import Batch, Collator
from salmacli.data.conversation import INTERNVL, QWEN_VL, TURN_END, Turn, answer_ids, branch, prefix
from salmacli.data.templates import ANSWERS, QUESTIONS
from salmacli.data.training.clips import Clip
from salmacli.engine.prediction.predictor import Predictor
from salmacli.errors import ConfigError
from salmacli.models.mllm import build_mllm
from salmacli.models.salma import Salma
from salmacli.models.sam2_package import named_sam2_config
from salmacli.models.tokenizer import build_tokenizer

TEXTS = ("the red circle", "the blue square on the left of it")
# Widths at which the attention looks at single tokens: with the usual 0.02 it is flat, and no position would matter.
LOUD = 0.25
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": LOUD,
}
PATCHES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": [32, 32],
    "patch_size": [4, 4],
    "attention_bias": True,
    "initializer_range": LOUD,
}
GRID = {"depth": 3, "num_heads": 4, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}


def _internvl(text: dict, vision: dict | None = None) -> dict:
    return {"vision_config": {**PATCHES, **(vision or {})}, "text_config": {**TEXT, **text}, "downsample_ratio": 0.5}


NATIVE = {
    "InternVL 2.5 and 3": _internvl({"model_type": "qwen2"}),
    "InternVL 2.5 with InternLM2": _internvl({"model_type": "llama", "attention_bias": False}),
    "InternVL 3.5": _internvl(
        {"model_type": "qwen3", "head_dim": 32}, {"use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": False}
    ),
    "Qwen2.5-VL": {
        "model_type": "qwen2_5_vl",
        "vision_config": {**GRID, "fullatt_block_indexes": [1], "window_size": 112, "initializer_range": LOUD},
        "text_config": {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
    },
    "Qwen3-VL": {
        "model_type": "qwen3_vl",
        "vision_config": {
            **GRID,
            "deepstack_visual_indexes": [0, 2],
            "num_position_embeddings": 100,
            "initializer_range": LOUD,
        },
        "text_config": {
            **TEXT,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        },
    },
}


@pytest.fixture(scope="module")
def tokenizer():
    built = build_tokenizer(TEXTS, 600)
    built.add_special_tokens(
        {"additional_special_tokens": [QWEN_VL.image_start, QWEN_VL.image_context, QWEN_VL.image_end]},
        replace_extra_special_tokens=False,
    )
    return built


@pytest.fixture(scope="module", params=NATIVE)
def mllm(request, tokenizer):
    torch.manual_seed(0)
    return build_mllm(MllmConfig(native=NATIVE[request.param]), tokenizer).eval()


def frames_of(mllm, count: int) -> np.ndarray:
    """(F, H, W, 3) uint8."""
    height, width = mllm.frame_size
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def pixels_of(mllm, frames: np.ndarray) -> torch.Tensor:
    """(F, 3, H, W) normalised."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (mllm.mean, mllm.std))
    return (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 - mean) / std


def start_of(mllm, tokenizer, count: int) -> torch.Tensor:
    return torch.from_numpy(prefix(tokenizer, mllm.chat, [mllm.tokens_per_frame] * count))


def branch_of(mllm, tokenizer, text: str, answer: str | None) -> torch.Tensor:
    return torch.from_numpy(branch(tokenizer, mllm.chat, text, QUESTIONS[0], answer).ids)


def plain(mllm, ids: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """(L, D): one conversation from its beginning to its end, with nothing cached."""
    length = len(ids)
    causal = torch.ones(1, length, length, dtype=torch.bool).tril()
    return mllm(ids[None], frames.flatten(0, 1), causal, torch.arange(length)[None])[0]


@torch.no_grad()
def reference(mllm, ids: torch.Tensor, frames: np.ndarray) -> torch.Tensor:
    """(L, D): the same by transformers' own forward pass, from pixels and tokens alone."""
    own = mllm.model.model
    given = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    if mllm.chat is INTERNVL:
        return own(pixel_values=pixels_of(mllm, frames), **given).last_hidden_state[0]
    vision = mllm.model.config.vision_config
    processor = Qwen2VLImageProcessor(
        do_resize=False,
        do_rescale=False,
        do_normalize=False,
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
    )
    shown = processor(list(pixels_of(mllm, frames)), return_tensors="pt")
    if "mm_token_type_ids" in inspect.signature(own.forward).parameters:  # since transformers 5.3
        given["mm_token_type_ids"] = (given["input_ids"] == mllm.image_id).int()
    own.rope_deltas = None
    return own(pixel_values=shown["pixel_values"], image_grid_thw=shown["image_grid_thw"], **given).last_hidden_state[0]


def clip(texts: tuple[str, ...], frames: int) -> Clip:
    pictures = tuple(np.random.default_rng(1).integers(0, 256, (frames, 40, 60, 3)).astype(np.uint8))
    return Clip(
        name="test",
        shown=pictures,
        frames=pictures[:1],
        dialogues=tuple((Turn(QUESTIONS[n], ANSWERS[n], text),) for n, text in enumerate(texts)),
        targets=tuple((str(n),) for n in range(len(texts))),
        masks=np.zeros((len(texts), 1, 40, 60), bool),
        foreground=np.zeros((1, 40, 60), bool),
    )


def collate(mllm, tokenizer, *clips: Clip) -> Batch:
    collator = Collator(tokenizer, mllm.frame_size, mllm.tokens_per_frame, 128, mllm.chat, mllm.mean, mllm.std)
    return collator.batch(clips)


def states_at_seg(mllm, batch: Batch) -> torch.Tensor:
    """(O, D) as a training step computes them."""
    hidden = mllm(
        batch.ids, mllm.encode_frames(batch.mllm_pixels).flatten(0, 1)[batch.seen], batch.attention, batch.positions
    )
    return hidden[batch.seg_rows, batch.seg_columns]


def test_states_equal_those_of_transformers_own_forward_pass(mllm, tokenizer):
    frames = frames_of(mllm, 3)
    ids = torch.cat([start_of(mllm, tokenizer, 3), branch_of(mllm, tokenizer, TEXTS[0], ANSWERS[0])])
    with torch.no_grad():
        states = plain(mllm, ids, mllm.encode_frames(pixels_of(mllm, frames)))
    assert torch.allclose(states, reference(mllm, ids, frames), atol=1e-5)


@torch.no_grad()
def test_packed_expressions_have_the_states_of_conversations_of_their_own(mllm, tokenizer):
    both, short = clip(TEXTS, 2), clip(TEXTS[:1], 1)
    per_text = ("dialogues", "targets", "masks")
    each = [Clip(**{**vars(both), **{key: getattr(both, key)[n : n + 1] for key in per_text}}) for n in (0, 1)]
    together = states_at_seg(mllm, collate(mllm, tokenizer, both, short))
    alone = [states_at_seg(mllm, collate(mllm, tokenizer, one)) for one in (*each, short)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_cached_answers_have_the_states_of_one_pass_over_the_whole_text(mllm, tokenizer):
    start = start_of(mllm, tokenizer, 2)
    questions = [branch_of(mllm, tokenizer, text, None) for text in TEXTS]
    said = torch.tensor(answer_ids(tokenizer, "It is the square, [SEG]."))
    with torch.no_grad():
        frames = mllm.encode_frames(pixels_of(mllm, frames_of(mllm, 2)))
        out = mllm.answer(mllm.read(start, frames), questions, max_new_tokens=4, forced=[None, said])
        assert out.ids[1] == tuple(said[:-1].tolist()), "forced answers are neither cut nor changed"
        assert len(out.ids[0]) <= 4
        for row, question in enumerate(questions):
            begin = len(start) + len(question)
            hidden = plain(mllm, torch.cat([start, question, torch.tensor(out.ids[row])]), frames)
            assert torch.allclose(out.words[row, : len(question)], hidden[len(start) : begin], atol=1e-5)
        chosen = mllm.vocabulary_logits(plain(mllm, torch.cat([start, questions[0], torch.tensor(out.ids[0])]), frames))
        free = chosen.argmax(-1)[len(start) + len(questions[0]) - 1 :].tolist()
        assert out.ids[0] == tuple(free[: len(out.ids[0])])
        assert out.found.tolist() == [mllm.seg_id in out.ids[0], True]
        assert torch.allclose(out.seg[1], hidden[begin + out.ids[1].index(mllm.seg_id)], atol=1e-5)


@torch.no_grad()
def test_a_region_is_text_whose_tokens_look_like_its_place_in_the_picture(mllm, tokenizer):
    region = np.zeros((40, 60), bool)
    region[:20, :30] = True
    one = clip(TEXTS[:1], 2)
    turns = (Turn("What is <vp></vp>?", "A dog."), Turn("Where is it?", "[SEG]"))
    batch = collate(mllm, tokenizer, Clip(**{**vars(one), "dialogues": (turns,), "regions": (region,)}))
    tokens = mllm.tokens_per_frame
    pointed = batch.seen[2 * tokens :]
    assert len(pointed) == tokens // 4 and (pointed < tokens).all(), "of the first picture"
    places = mllm._places(batch.ids, batch.positions)
    text = places[..., 0, int((batch.ids[0] == mllm.image_id).nonzero()[2 * tokens - 1]) + 2 :]
    assert (text.diff() == 1).all(), "one position after the other, also in a region"
    assert states_at_seg(mllm, batch).isfinite().all()


def test_every_part_learns(mllm, tokenizer):
    mllm.zero_grad()
    states_at_seg(mllm, collate(mllm, tokenizer, clip(TEXTS, 1))).square().sum().backward()
    silent = [name for name, weight in mllm.named_parameters() if weight.grad is None or not weight.grad.any()]
    # The head is not part of this loss, and a key's bias cancels in the softmax.
    assert [n for n in silent if "lm_head" not in n and not n.endswith("k_proj.bias")] == []
    assert list(mllm.parts()) == ["vision tower", "vision-language projector", "language model", "language head"]
    assert all(any(True for _ in part.parameters()) for part in mllm.parts().values())


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_prediction_decodes_what_training_decodes(name, tokenizer):
    torch.manual_seed(0)
    config = load_config("tiny").model.model_copy(update={"mllm": MllmConfig(native=NATIVE[name])})
    model = Salma(config, tokenizer).eval()
    one = clip(TEXTS[:1], 1)
    shown = Clip(**{**vars(one), "shown": one.frames * config.clip_frames})
    trained = model(collate(model.mllm, tokenizer, shown)).masks.logits
    predictor = Predictor(model, PredictConfig(mode="frames"))
    (track,) = predictor.video(one.frames, TEXTS[:1], answer=ANSWERS[0], keep_logits=True)
    assert torch.allclose(trained, torch.from_numpy(track.logits), atol=1e-5)


def test_frames_without_placeholders_are_a_fault(mllm, tokenizer):
    frames = mllm.encode_frames(pixels_of(mllm, frames_of(mllm, 2)))
    with pytest.raises(ValueError, match="placeholders"):
        plain(mllm, start_of(mllm, tokenizer, 1), frames)


def test_frames_of_qwen_vl_are_as_large_as_those_of_internvl(tokenizer):
    tokens = {"Qwen2.5-VL": 256, "Qwen3-VL": 196}  # 28 and 32 pixels a side
    for name, count in tokens.items():
        native = NATIVE[name]
        qwen = build_mllm(MllmConfig(native=native), tokenizer)
        assert (qwen.frame_size, qwen.tokens_per_frame) == ((448, 448), count)


def test_the_head_is_tied_only_where_the_config_says_so(tokenizer):
    for tied in (False, True):
        for native in (NATIVE["InternVL 2.5 and 3"], NATIVE["Qwen2.5-VL"]):
            text = {**native["text_config"], "tie_word_embeddings": not tied}  # the outer one alone counts
            given = {**native, "text_config": text} | ({"tie_word_embeddings": True} if tied else {})
            model = build_mllm(MllmConfig(native=given), tokenizer).model
            assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_an_embedding_may_have_rows_to_spare(tokenizer):
    native = NATIVE["InternVL 3.5"]
    native = {**native, "text_config": {**native["text_config"], "vocab_size": len(tokenizer) + 7}}
    assert len(build_mllm(MllmConfig(native=native), tokenizer).model.lm_head.weight) == len(tokenizer) + 7


@pytest.mark.parametrize(
    ("native", "message"),
    [
        ({"model_type": "llava"}, "'llava' is unknown; take one of internvl, qwen2_5_vl, qwen3_vl"),
        ({"vision_config": {}}, "text_config is missing"),
        ({**_internvl({"model_type": "qwen2", "vocab_size": 300})}, "embedding 300 rows"),
    ],
)
def test_a_config_that_does_not_fit_is_named(native, message, tokenizer):
    with pytest.raises(ConfigError, match=message):
        build_mllm(MllmConfig(native=native), tokenizer)


def test_a_tokenizer_of_another_family_is_named():
    tokenizer = build_tokenizer(TEXTS, 600)
    with pytest.raises(ConfigError, match=r"lacks <\|vision_start\|>, <\|image_pad\|>, <\|vision_end\|>"):
        build_mllm(MllmConfig(native=NATIVE["Qwen3-VL"]), tokenizer)
    assert TURN_END in tokenizer.get_vocab()


@pytest.mark.parametrize(("size", "millions"), [("1b", 938.2), ("4b", 3712.6), ("8b", 8075.4)])
def test_presets_have_the_dimensions_of_the_models_they_name(size, millions, tokenizer):
    """The published numbers of parameters, with five more rows for the special tokens."""
    config = load_config(f"salma-{size}").model
    with init_empty_weights(include_buffers=False):
        mllm = build_mllm(config.mllm, tokenizer)
    special = 5 * 2 * mllm.width
    assert sum(weight.numel() for weight in mllm.parameters()) - special == pytest.approx(millions * 1e6, abs=5e4)
    assert (mllm.frame_size, mllm.tokens_per_frame) == ((448, 448), 256)
    assert config.sam2.model_copy(update={"base": None, "two_decoders": False}) == named_sam2_config("sam2_hiera_l")


@pytest.mark.parametrize("kind", NATIVE)
def test_every_family_is_built_from_scratch_with_a_tokenizer_of_its_own(kind):
    config = load_config("tiny").model
    native = {**NATIVE[kind], "text_config": {**NATIVE[kind]["text_config"]}}
    native["text_config"].pop("vocab_size", None)
    model = Salma.build(config.model_copy(update={"mllm": MllmConfig(native=native, vocabulary=600)}), TEXTS)
    assert model.tokenizer.convert_tokens_to_ids(model.mllm.chat.image_context) == model.mllm.image_id


def test_rotary_is_rounded_as_the_config_says(tokenizer):
    native = NATIVE["InternVL 2.5 and 3"]
    exact, frequencies, tables = (
        build_mllm(MllmConfig(native=native, rotary=what), tokenizer).model.model.language_model.rotary_emb
        for what in ("exact", "rounded-frequencies", "rounded-tables")
    )
    assert torch.equal(frequencies.inv_freq, exact.inv_freq.bfloat16().float())
    assert torch.equal(tables.inv_freq, exact.inv_freq) and not torch.equal(frequencies.inv_freq, exact.inv_freq)
    states, places = torch.zeros(1, 1350, 8), torch.arange(1350)[None]
    for ours, whole in zip(tables(states, places), exact(states, places), strict=True):
        assert torch.equal(ours, whole.bfloat16().float()) and not torch.equal(ours, whole)
