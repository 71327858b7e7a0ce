"""What becomes of an answer without [SEG], of one with several, and of an empty mask: named, counted, never silent."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from salmacli.config.schema import PredictConfig
from salmacli.engine.prediction.batches import BatchSize
from salmacli.engine.prediction.predictor import Predictor
from salmacli.engine.prediction.tracks import Recorder, reason_of
from salmacli.engine.prediction.windows import NOTHING, FrameMasks

TEXTS = ["the red circle", "the blue square on the left"]
SILENT, TWICE = "I see none.", "[SEG] and [SEG]"


@pytest.fixture
def predict(tiny_model, frames):
    def run(fallback="none", mode="frames", model=tiny_model, **settings):
        engine = Predictor(model, PredictConfig(mode=mode, fallback=fallback, **settings))
        return engine.video(frames, TEXTS, keep_logits=True)

    return run


@pytest.fixture
def blind(tiny_model):
    """A model whose decoder finds nothing where it is asked, but sees objects in the pre-pass."""
    model = deepcopy(tiny_model)
    original = model.grounding.decode

    def decode(rows, language, best_of_three, **options):
        masks = original(rows, language, best_of_three, **options)
        return type(masks)(masks.logits.abs() * (1 if language is None else -1), *masks.parts()[1:])

    model.grounding.decode = decode
    return model


def test_none_leaves_it_empty_and_says_why(predict, tiny_model, saying):
    with saying(tiny_model, SILENT, "[SEG]"):
        silent, said = predict()
    assert silent.reason == "no-seg" and silent.answer == SILENT
    assert silent.logits is None and silent.embedding is None
    assert not silent.masks().any() and (silent.empty, silent.filled) == (5, 0)
    assert said.reason is None and said.masks().any()


def test_when_nobody_is_found_nothing_is_encoded(predict, tiny_model, saying, monkeypatch):
    monkeypatch.setattr(type(tiny_model.grounding), "encode", lambda *_: pytest.fail("for nobody"))
    with saying(tiny_model, SILENT):
        assert all(track.reason == "no-seg" and len(track.counts) == 5 for track in predict())


@pytest.mark.parametrize("mode", ["frames", "consistent", "sa2va"])
def test_a_forced_seg_takes_the_place_of_no_seg(predict, tiny_model, saying, mode):
    with saying(tiny_model, SILENT, "[SEG]"):
        silent, said = predict("force-seg", mode)
    with saying(tiny_model, "Sure, [SEG]."):
        forced = predict("none", mode)[0]
    assert silent.reason == "no-seg" and silent.answer == SILENT
    assert np.abs(silent.logits - forced.logits).max() < 1e-5
    # What the forced state leaves empty is not filled.
    assert silent.empty == 5 and silent.filled == sum(map(bool, (silent.logits > 0).any((1, 2))))
    assert said.reason is None


def test_the_prior_takes_the_place_of_no_seg_and_is_the_same_for_all(predict, tiny_model, saying, frames):
    with saying(tiny_model, SILENT):
        first, second = predict("prior")
    assert first.counts == second.counts and first.masks().any() and first.reason == "no-seg"
    assert first.empty == 5 and first.filled > 0


def test_of_several_seg_the_first_is_used_and_it_is_said(predict, tiny_model, saying):
    with saying(tiny_model, TWICE, "[SEG]"):
        twice, once = predict()
    with saying(tiny_model, "[SEG]"):
        alone = predict()[0]
    assert twice.reason == "several-seg" and once.reason is None
    assert np.abs(twice.logits - alone.logits).max() < 1e-5


def test_an_empty_mask_takes_the_fall_back(predict, blind, saying):
    with saying(blind, "[SEG]"):
        none, prior = predict("none", model=blind)[0], predict("prior", model=blind)[0]
    assert none.reason == prior.reason == "empty" and none.empty == prior.empty == 5
    assert (none.filled, prior.filled) == (0, 5)
    assert not none.masks().any() and prior.masks().any(axis=(1, 2)).all()


def test_an_empty_mask_is_decoded_again_with_a_forced_seg(predict, tiny_model, saying, monkeypatch):
    """The model's own state finds nothing, that of the forced answer does."""
    model = deepcopy(tiny_model)
    original = model.language

    def language(seg, words, valid):
        calls.append(len(calls))
        return original(seg if len(calls) == 1 else seg + 5, words, valid)

    calls: list[int] = []
    monkeypatch.setattr(model, "language", language)
    decode = type(model.grounding).decode
    own: list[torch.Tensor] = []

    def empty(self, rows, said, best_of_three, **options):
        masks = decode(self, rows, said, best_of_three, **options)
        if said is None:
            return masks
        own.append(said)
        first = torch.isclose(said[:, None], own[0][None], atol=1e-4).all(-1).any(-1)
        return type(masks)(torch.where(first[:, None, None], -1.0, masks.logits.abs()), *masks.parts()[1:])

    monkeypatch.setattr(type(model.grounding), "decode", empty)
    with saying(model, "[SEG]"):
        tracks = predict("force-seg", model=model)
    assert [(track.reason, track.empty, track.filled) for track in tracks] == [("empty", 5, 5)] * 2


def test_previous_repeats_the_mask_before_and_begins_where_there_is_one():
    recorder = Recorder(2, 6, (4, 4), None, keep_logits=True, batch=BatchSize(9, "masks", print))
    there = [[False, True, False, False, True, False], [False] * 6]
    for frame in (3, 0, 1, 5, 2, 4):  # in any order
        logits = torch.full((2, 4, 4), -1.0)
        for row in range(2):
            if there[row][frame]:
                logits[row, frame % 4, :] = 1.0
        empty = torch.tensor([not row[frame] for row in there])
        recorder.put(
            frame, FrameMasks(logits, empty, torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
        )
    recorder.finish()
    recorder.repeat_previous()
    first = recorder.counts[0]
    assert first[0] != first[1] and first[1] == first[2] == first[3] != first[4] == first[5]
    assert recorder.filled[0].tolist() == [False, False, True, True, False, True] and not recorder.filled[1].any()
    assert (recorder.logits[0, 2] == recorder.logits[0, 1]).all() and recorder.empty[0].sum() == 4


def test_previous_fills_from_the_window_before(tiny_model, frames, saying):
    """The LLM is asked in each of two windows and is silent in the second."""
    engine = Predictor(tiny_model, PredictConfig(mode="frames", fallback="previous", window=3, overlap=0))
    answers = iter(["[SEG]", SILENT])
    original = type(tiny_model.mllm).answer

    def answer(prefix, questions, most, forced=None):
        said = tiny_model.tokenizer(next(answers), add_special_tokens=False)["input_ids"]
        forced = [torch.tensor([*said, tiny_model.mllm.end_id])] * len(questions)
        return original(tiny_model.mllm, prefix, questions, most, forced=forced)

    tiny_model.mllm.answer = answer
    try:
        track = engine.video(frames, TEXTS[:1], keep_logits=True)[0]
    finally:
        del tiny_model.mllm.answer
    assert track.answers == ("[SEG]", SILENT) and track.reason == "no-seg"
    start = 2  # 5 frames are 2 and 3
    assert len({*track.counts[start - 1 :]}) == 1 and track.masks()[start:].any()
    assert (track.empty, track.filled) == (3, 3) and np.isfinite(track.logits).all()


def test_reasons():
    some, none = np.array([True, False]), np.array([True, True])
    assert reason_of([True, True], [False, False], some) is None
    assert reason_of([True, False], [True, False], none) == "no-seg"
    assert reason_of([True, True], [False, True], none) == "several-seg"
    assert reason_of([True], [False], none) == "empty"
    assert NOTHING < -100
