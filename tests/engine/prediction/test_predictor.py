"""Prediction: what is shared is computed once, what is done stays done, nothing is silent."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from salmacli.data import rle
from salmacli.data.synthetic import open_synthetic
from salmacli.engine.prediction.benchmark import predict_benchmark
from salmacli.engine.prediction.predictor import Predictor
from salmacli.engine.prediction.sights import to_language
from salmacli.engine.prediction.tracks import resized
from salmacli.errors import DataError, UsageError

CHECKPOINT = {"path": "none", "step": 0, "sha256": "0"}


@pytest.fixture
def benchmark(small_synthetic: Path):
    return open_synthetic("mevis", small_synthetic, "valid_u")


@pytest.fixture
def frames() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (30, 44, 3)).astype(np.uint8) for _ in range(5)]


@pytest.fixture
def speaking(tiny_model, monkeypatch):
    """A random LLM does not say [SEG]; its language head is held to do so."""
    seg, end = tiny_model.mllm.seg_id, tiny_model.mllm.end_id

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(*hidden.shape[:-1], len(tiny_model.tokenizer))
        out[..., seg if speaking_calls["n"] % 2 == 0 else end] = 1
        speaking_calls["n"] += 1
        return out

    speaking_calls = {"n": 0}
    monkeypatch.setattr(tiny_model.mllm, "vocabulary_logits", logits)
    return tiny_model


@pytest.mark.parametrize("mode", ["frames", "consistent", "sa2va"])
def test_masks_have_the_frames_size_and_expressions_differ(speaking, frames, mode):
    first, second = Predictor(speaking, mode).video(frames, ["the red circle", "the blue square on the left"])
    assert first.answer == "[SEG]"
    assert first.masks().shape == (5, 30, 44) and first.logits.shape == (5, 32, 32)
    assert not torch.equal(first.logits, second.logits)


def test_an_expression_alone_gets_the_masks_it_gets_in_company(speaking, frames):
    predictor = Predictor(speaking, "frames")
    together = predictor.video(frames, ["the red circle", "the blue square on the left"])[1]
    alone = predictor.video(frames, ["the blue square on the left"])[0]
    assert torch.allclose(together.logits, alone.logits, atol=1e-4)


def test_every_frame_is_encoded_once_whatever_the_number_of_expressions(speaking, frames, monkeypatch):
    encoded = []
    original = type(speaking.grounding).encode
    monkeypatch.setattr(
        type(speaking.grounding),
        "encode",
        lambda self, images: encoded.append(len(images)) or original(self, images),
    )
    Predictor(speaking, "frames").video(frames, ["a", "b", "c"])
    assert sum(encoded) == len(frames)


def test_no_seg_is_empty_and_named(tiny_model, frames, monkeypatch, tmp_path, benchmark):
    def logits(hidden: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(*hidden.shape[:-1], len(tiny_model.tokenizer))
        out[..., tiny_model.mllm.end_id] = 1
        return out

    monkeypatch.setattr(tiny_model.mllm, "vocabulary_logits", logits)
    track = Predictor(tiny_model, "frames").video(frames, ["the red circle"])[0]
    assert track.logits is None and not track.masks().any()
    predict_benchmark(Predictor(tiny_model, "frames"), benchmark, tmp_path, checkpoint=CHECKPOINT)
    content = json.loads((tmp_path / f"{benchmark.videos[0].name}.json").read_text())
    assert {entry["fallback"] for entry in content["expressions"].values()} == {"no-seg"}


def test_an_interrupted_prediction_goes_on_and_ends_the_same(speaking, benchmark, tmp_path, monkeypatch):
    predictor = Predictor(speaking, "frames")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    predict_benchmark(predictor, benchmark, whole, checkpoint=CHECKPOINT, save_logits=True)

    calls = 0
    original = Predictor.video

    def dies(self, *arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(Predictor, "video", dies)
    with pytest.raises(KeyboardInterrupt):
        predict_benchmark(predictor, benchmark, cut, checkpoint=CHECKPOINT, save_logits=True)
    assert json.loads((cut / "prediction.json").read_text())["complete"] is False
    predict_benchmark(predictor, benchmark, cut, checkpoint=CHECKPOINT, save_logits=True)
    assert calls == 2 + len(benchmark.videos) - 1, "the first video was not predicted again"
    for path in whole.glob("*.json"):
        assert (cut / path.name).read_text() == path.read_text()


def test_predictions_of_another_checkpoint_are_set_aside_and_said(speaking, benchmark, tmp_path):
    said = []

    class Listener:
        def start(self, *_, **__): ...
        def advance(self, *_, **__): ...
        def finish(self): ...
        def say(self, message):
            said.append(message)

    folder, predictor = tmp_path / "predictions", Predictor(speaking, "frames")
    predict_benchmark(predictor, benchmark, folder, checkpoint=CHECKPOINT)
    predict_benchmark(predictor, benchmark, folder, checkpoint={**CHECKPOINT, "step": 9}, progress=Listener())
    assert (tmp_path / "predictions.old-1").is_dir() and "another checkpoint" in said[0]


def test_saved_logits_give_the_saved_masks(speaking, benchmark, tmp_path):
    predict_benchmark(Predictor(speaking, "frames"), benchmark, tmp_path, checkpoint=CHECKPOINT, save_logits=True)
    video = benchmark.videos[0]
    content = json.loads((tmp_path / f"{video.name}.json").read_text())
    arrays = np.load(tmp_path / f"{video.name}.npz")
    height, width = content["size"]
    for name, entry in content["expressions"].items():
        logits = torch.nn.functional.interpolate(
            torch.from_numpy(arrays[name]).unsqueeze(1), (height, width), mode="bilinear", align_corners=False
        )
        for counts, mask in zip(entry["masks"], logits[:, 0] > 0, strict=True):
            assert np.array_equal(rle.decode({"size": [height, width], "counts": counts}), mask.numpy())


def test_logits_of_sa2va_pass_through_sam2s_square(speaking, frames):
    """Small pictures: the way over S × S is another than the direct one, and the masks take it."""
    track = Predictor(speaking, "sa2va").video(frames, ["the red circle"])[0]
    through = resized(resized(track.logits, (track.side, track.side)), track.size) > 0
    assert np.array_equal(track.masks(), through.numpy())
    assert not torch.equal(through, resized(track.logits, track.size) > 0)


def test_a_forced_answer_is_what_the_model_says(tiny_model, frames):
    predictor = Predictor(tiny_model, "frames")
    said, silent = (predictor.video(frames, ["a ring"], answer=text)[0] for text in ("It is [SEG].", "I see none."))
    assert said.answer == "It is [SEG]." and said.embedding.shape == (tiny_model.config.sam2.width,)
    assert silent.answer == "I see none." and silent.logits is None and silent.embedding is None


def test_a_still_picture_is_shown_in_tiles_and_a_video_of_one_frame_is_not(tiny_model, frames):
    still, video = (to_language(tiny_model, "sa2va", frames[:1], still=still) for still in (True, False))
    assert video.pictures == (tiny_model.mllm.tokens_per_frame,)
    assert len(still.pictures) == 1 and still.pictures[0] == len(still.pixels) * tiny_model.mllm.tokens_per_frame
    assert len(still.pixels) > 1 and still.prompted == video.prompted == (0,)


def test_half_precision_is_refused(tiny_model):
    with pytest.raises(UsageError, match="bfloat16"):
        Predictor(deepcopy(tiny_model).to(torch.bfloat16), "frames")


def test_empty_sentence_and_empty_video_are_errors(tiny_model, frames):
    with pytest.raises(DataError, match="empty"):
        Predictor(tiny_model, "frames").video(frames, ["the red circle", "  "])
    with pytest.raises(DataError, match="no frames"):
        Predictor(tiny_model, "frames").video([], ["the red circle"])


def test_a_video_of_one_frame(speaking, frames):
    for mode in ("frames", "consistent", "sa2va"):
        assert Predictor(speaking, mode).video(frames[:1], ["the red circle"])[0].masks().shape == (1, 30, 44)


def test_predictions_know_their_data_and_not_where_the_checkpoint_lies(speaking, benchmark, small_synthetic, tmp_path):
    folder, predictor = tmp_path / "predictions", Predictor(speaking, "frames")
    predict_benchmark(predictor, benchmark, folder, checkpoint=CHECKPOINT)
    predict_benchmark(predictor, benchmark, folder, checkpoint={**CHECKPOINT, "path": "moved"})
    assert not (tmp_path / "predictions.old-1").exists()
    benchmark.videos = benchmark.videos[:1]
    predict_benchmark(predictor, benchmark, folder, checkpoint=CHECKPOINT)
    assert (tmp_path / "predictions.old-1").exists()
