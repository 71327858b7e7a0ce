"""Prediction: what is shared is computed once and changes nothing, and nothing is silent."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from salmacli.config.loading import load_config
from salmacli.config.schema import PredictConfig
from salmacli.data.frames import arrays
from salmacli.engine.prediction.predictor import Predictor
from salmacli.engine.prediction.sights import to_language
from salmacli.engine.prediction.tracks import resized
from salmacli.errors import ConfigError, DataError, SalmaError
from salmacli.models.grounding import Grounding, Masks
from salmacli.models.salma import Salma

TEXTS = ["the red circle", "the blue square on the left", "a ring that turns before it stops, behind all others"]
MODES = ["frames", "consistent", "sa2va"]
# Every way through the engine.
WAYS = [
    *({"mode": mode} for mode in MODES),
    {"mode": "consistent", "choice": "diverse", "key_frames": 3},
    {"mode": "consistent", "choice": "first", "key_frames": 2, "memories": 2, "conditioning": 1},
    {"mode": "consistent", "window": 8, "overlap": 3, "choice": "diverse", "key_frames": 2},
    {"mode": "sa2va", "window": 8, "overlap": 3, "key_frames": 2},
    {"mode": "frames", "window": 8, "overlap": 3},
    {"mode": "consistent", "cma": {"frames": "all", "temporal_prior": True}},
    {"mode": "sa2va", "cma": {"frames": "all"}},
    {"mode": "frames", "cma": {"temporal_prior": True}},
    {"mode": "consistent", "fallback": "prior"},
    {"mode": "consistent", "fallback": "force-seg"},
]


def predictor(model: Salma, **settings) -> Predictor:
    return Predictor(model, PredictConfig(frames_at_once=4, **settings))


@pytest.fixture(scope="module")
def lively() -> Salma:
    """A model in which the memory and the attention matter, with two decoders, object scores and mask tokens."""
    torch.manual_seed(0)
    settings = ["model.cma.enabled=true", "model.sam2.two_decoders=true", "model.mask_token=best-of-three"]
    with pytest.MonkeyPatch.context() as patch:
        # Loud, it makes 8e-4 of a flip in the bfloat16 that mode sa2va rounds memories to; in float64 nothing differs.
        patch.setattr(Grounding, "start_memory", lambda grounding: None)
        model = Salma.build(load_config("tiny", settings).model, TEXTS).eval()
    for parameter in model.parameters():
        if not parameter.abs().sum():
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def video() -> list[np.ndarray]:
    """11 frames whose looks change."""
    rng = np.random.default_rng(1)
    start, end = (rng.integers(0, 255, (24, 40, 3)) for _ in range(2))
    return [((10 - n) / 10 * start + n / 10 * end).astype(np.uint8) for n in range(11)]


@pytest.mark.parametrize("mode", MODES)
def test_masks_have_the_frames_size_and_expressions_differ(speaking, frames, mode):
    first, second, _ = predictor(speaking, mode=mode).video(frames, TEXTS, keep_logits=True)
    assert first.answer == "[SEG]" and first.reason is None
    assert first.masks().shape == (5, 30, 44) and first.logits.shape == (5, 32, 32)
    assert not np.array_equal(first.logits, second.logits)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_together_is_as_one_by_one_and_every_frame_is_encoded_once(lively, video, way, monkeypatch, saying):
    """The promise of the engine: sharing is exact, and the encoder's work does not depend on who asks."""
    encoded = []
    original = type(lively.grounding).encode
    monkeypatch.setattr(
        type(lively.grounding), "encode", lambda self, images: encoded.append(len(images)) or original(self, images)
    )
    engine = predictor(lively, **way)
    with saying(lively, "[SEG]"):
        together = engine.video(video, TEXTS, keep_logits=True)
        assert sum(encoded) == len(video)
        for text, track in list(zip(TEXTS, together, strict=True))[1:]:
            alone = engine.video(video, [text], keep_logits=True)[0]
            assert np.abs(alone.logits - track.logits).max() < 1e-4
            assert alone.counts == track.counts and alone.empty == track.empty
    assert sum(encoded) == len(video) * 3


@pytest.mark.parametrize("way", WAYS[1:6:2], ids=str)
def test_batches_of_any_size_give_the_same(lively, video, way, saying):
    with saying(lively, "[SEG]", "It is [SEG]."):
        whole = predictor(lively, **way).video(video, TEXTS, keep_logits=True)
        settings = PredictConfig(frames_at_once=3, expressions_at_once=2, readers=1, **way)
        parts = Predictor(lively, settings).video(video, TEXTS, keep_logits=True)
    for one, other in zip(whole, parts, strict=True):
        assert np.abs(one.logits - other.logits).max() < 1e-4 and one.counts == other.counts


@pytest.mark.parametrize(("way", "other"), [
    ({"mode": "consistent"}, {"cma": {"frames": "all"}}),
    ({"mode": "sa2va"}, {"cma": {"frames": "all"}}),
    ({"mode": "frames"}, {"cma": {"temporal_prior": True}}),
    ({"mode": "consistent", "cma": {"frames": "all"}}, {"cma": {"frames": "all", "temporal_prior": True}}),
    ({"mode": "consistent"}, {"key_frames": 2}),
    ({"mode": "consistent"}, {"choice": "first"}),
    ({"mode": "consistent"}, {"window": 7}),
    ({"mode": "consistent"}, {"memories": 1}),
    ({"mode": "consistent"}, {"conditioning": 1}),
], ids=str)  # fmt: skip
def test_an_option_changes_what_it_says(lively, video, way, other, saying):
    with saying(lively, "[SEG]"):
        before, after = (
            predictor(lively, **one).video(video, TEXTS[:1], keep_logits=True)[0] for one in (way, {**way, **other})
        )
    assert not np.allclose(before.logits, after.logits, atol=1e-5)


def test_a_temporal_prior_acts_from_the_second_frame_on(lively, video, saying):
    with saying(lively, "[SEG]"):
        plain, prior = (
            predictor(lively, mode="frames", cma={"temporal_prior": on}).video(video, TEXTS[:1], keep_logits=True)[0]
            for on in (False, True)
        )
    assert np.allclose(plain.logits[0], prior.logits[0], atol=1e-6)
    assert not np.allclose(plain.logits[1], prior.logits[1], atol=1e-6)


def test_logits_of_sa2va_pass_through_sam2s_square(speaking, frames):
    """Small pictures: the way over S × S is another than the direct one, and the masks take it."""
    track = predictor(speaking, mode="sa2va").video(frames, TEXTS[:1], keep_logits=True)[0]
    logits = torch.from_numpy(track.logits)
    through = resized(resized(logits, (track.side, track.side)), track.size) > 0
    assert np.array_equal(track.masks(), through.numpy())
    assert not torch.equal(through, resized(logits, track.size) > 0)


def test_a_forced_answer_is_what_the_model_says(tiny_model, frames):
    engine = predictor(tiny_model, mode="frames")
    said, silent = (engine.video(frames, ["a ring"], answer=text)[0] for text in ("It is [SEG].", "I see none."))
    assert said.answer == "It is [SEG]." and said.embedding.shape == (tiny_model.config.sam2.width,)
    assert silent.answer == "I see none." and silent.reason == "no-seg" and silent.embedding is None


def test_a_still_picture_is_shown_in_tiles_and_a_video_of_one_frame_is_not(tiny_model, frames):
    still, video = (to_language(tiny_model, "sa2va", frames[:1], still=still) for still in (True, False))
    assert video.pictures == (tiny_model.mllm.tokens_per_frame,)
    assert len(still.pictures) == 1 and still.pictures[0] == len(still.pixels) * tiny_model.mllm.tokens_per_frame
    assert len(still.pixels) > 1
    picture = predictor(tiny_model, mode="sa2va").video(arrays(frames[:1], still=True), ["a ring"], answer="[SEG]")
    assert picture[0].masks().shape == (1, 30, 44)


@pytest.mark.parametrize("way", WAYS[::3], ids=str)
def test_a_video_of_one_frame(lively, frames, way):
    assert predictor(lively, **way).video(frames[:1], TEXTS[:1], answer="[SEG]")[0].masks().shape == (1, 30, 44)


@pytest.mark.slow
def test_two_hundred_sentences(speaking, frames):
    texts = [f"the {n}th circle" for n in range(200)]
    tracks = predictor(speaking, mode="consistent").video(frames[:3], texts)
    assert [track.text for track in tracks] == texts
    assert tracks[150].counts == predictor(speaking, mode="consistent").video(frames[:3], texts[150:151])[0].counts


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_gives_nearly_the_same_masks(lively, video, mode):
    half = deepcopy(lively).to(torch.bfloat16)
    exact, rounded = (
        predictor(model, mode=mode).video(video, TEXTS, answer="It is [SEG].") for model in (lively, half)
    )
    same = np.mean([a.masks() == b.masks() for a, b in zip(exact, rounded, strict=True)])
    assert same > 0.98


def test_empty_sentence_and_empty_video_are_errors(tiny_model, frames):
    with pytest.raises(DataError, match="empty"):
        predictor(tiny_model).video(frames, ["the red circle", "  "])
    with pytest.raises(DataError, match="no frames"):
        predictor(tiny_model).video([], ["the red circle"])
    assert predictor(tiny_model).video(frames, []) == []


def test_progress_counts_every_frame_once(speaking, video):
    for way in ({"mode": "frames"}, {"mode": "consistent", "window": 6, "overlap": 2}):
        finished: list[int] = []
        predictor(speaking, **way).video(video, TEXTS[:1], advance=finished.append)
        assert sum(finished) == len(video)


def test_settings_that_contradict_the_models_own_mode_are_refused(tiny_model):
    with pytest.raises(ConfigError, match="choice"):
        predictor(_in_mode(tiny_model, "sa2va"), choice="diverse")


def _in_mode(model: Salma, mode: str) -> Salma:
    other = deepcopy(model)
    other.config = model.config.model_copy(update={"inference_mode": mode})
    return other


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_kernels_of_the_attention_change_no_mask(lively, video, kind):
    model = deepcopy(lively)
    before = predictor(model, mode="frames").video(video[:4], TEXTS, answer="[SEG]")
    after = predictor(model, mode="frames", attention=kind).video(video[:4], TEXTS, answer="[SEG]")
    assert model.mllm.model.config.text_config._attn_implementation == kind
    assert [track.counts for track in before] == [track.counts for track in after]


def _size(arguments: tuple) -> int:
    """How many rows a call is for."""
    of_slices = [one.stop - one.start for one in arguments if isinstance(one, slice)]
    rows = [one.iou if isinstance(one, Masks) else one for one in arguments]
    return of_slices[0] if of_slices else max(len(one) for one in rows if hasattr(one, "__len__"))


@pytest.mark.parametrize("where", [
    "salmacli.models.grounding.Grounding.encode",
    pytest.param("salmacli.models.mllm.internvl.InternVl.encode_frames", marks=pytest.mark.slow),
    "salmacli.models.mllm.base.Mllm.answer",
    pytest.param("salmacli.models.salma.Salma.prior", marks=pytest.mark.slow),
    "salmacli.models.salma.Salma.decode",
    pytest.param("salmacli.models.propagation.AsSam2.remember", marks=pytest.mark.slow),
    "salmacli.models.memory.MemoryBank.recall",
    "salmacli.engine.prediction.tracks.Recorder._pictures",
])  # fmt: skip
def test_out_of_memory_halves_the_batch_and_says_so(lively, video, where, monkeypatch):
    """Wherever memory runs out; 9 key frames are more than a batch."""
    said: list[str] = []
    texts = [f"{text} {n}" for n in range(2) for text in TEXTS[:2]]
    name, method = where.rsplit(".", 1)
    module, kind = name.rsplit(".", 1)
    owner = getattr(import_module(module), kind)
    original = getattr(owner, method)

    def small(self, *arguments, **options):
        if _size(arguments) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return original(self, *arguments, **options)

    settings = PredictConfig(mode="consistent", key_frames=9, choice="diverse")
    whole = Predictor(lively, settings).video(video, texts, answer="[SEG]")
    monkeypatch.setattr(owner, method, small)
    parts = Predictor(lively, settings, said.append).video(video, texts, answer="[SEG]")
    assert [track.counts for track in whole] == [track.counts for track in parts]
    assert said and all("out of memory" in one and "going on with" in one for one in said)


@pytest.mark.parametrize("message", ["CUDA out of memory.", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_memory_that_no_batch_helps_against_is_an_error_of_one_line(lively, video, monkeypatch, message):
    def none(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr(type(lively.mllm), "read", none)
    with pytest.raises(SalmaError, match="memory does not hold"):
        predictor(lively, mode="frames").video(video, TEXTS, answer="[SEG]")


def test_other_errors_are_not_taken_for_a_lack_of_memory(lively, video, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(type(lively.grounding), "encode", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        predictor(lively, mode="frames").video(video, TEXTS, answer="[SEG]")


def test_memory_for_not_even_one_is_an_error_of_one_line(lively, video, monkeypatch):
    def none(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(type(lively.grounding), "encode", none)
    with pytest.raises(SalmaError, match="not hold even one of the frames"):
        predictor(lively, mode="frames").video(video, TEXTS, answer="[SEG]")
