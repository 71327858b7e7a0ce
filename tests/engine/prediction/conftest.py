"""A model that speaks, and one that is no model at all but predicts at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from salmacli.checkpoints.layouts import Layout
from salmacli.checkpoints.load import CheckpointInfo
from salmacli.config.loading import load_config, load_predict
from salmacli.data import rle
from salmacli.data.synthetic import open_synthetic
from salmacli.engine.prediction.benchmark import Job
from salmacli.engine.prediction.tracks import Track
from salmacli.models.salma import Salma


class Quick:
    """Stands for a `Predictor`: what it gives depends on the pictures and the sentence alone."""

    def video(self, frames, texts, *, answer=None, keep_logits=False, advance=None):
        tracks = []
        pictures = list(frames)
        for text in texts:
            cut = 40 + 7 * len(text) % 170
            masks = [picture[..., 0] > cut for picture in pictures]
            tracks.append(
                Track(
                    text=text,
                    answers=("Sure, [SEG].",),
                    size=pictures[0].shape[:2],
                    counts=[rle.encode(mask)["counts"] for mask in masks],
                    reason=None if any(mask.any() for mask in masks) else "empty",
                    empty=sum(not mask.any() for mask in masks),
                    filled=0,
                    logits=np.stack([p[::8, ::8, 0] - np.float32(cut) for p in pictures]) if keep_logits else None,
                    embedding=None,
                    side=64,
                    by_side=False,
                )
            )
        for _ in pictures:
            if advance is not None:
                advance(1)
        return tracks


class Listener:
    """Keeps what is told."""

    def __init__(self):
        self.said, self.tasks, self.done = [], [], 0

    def start(self, task, total, done=0):
        self.tasks.append((task, total, done))
        self.done = done

    def advance(self, n=1, **figures):
        self.done += n

    def say(self, message):
        self.said.append(message)

    def finish(self): ...


@pytest.fixture
def quick():
    return Quick()


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
def benchmark(small_synthetic: Path):
    return open_synthetic("mevis", small_synthetic, "valid_u")


@pytest.fixture
def make_job(tmp_path, benchmark):
    """Jobs of a checkpoint that holds what is said; none of them is ever loaded."""

    def make(*assignments, weights="weights", where="checkpoint", of=None, **given):
        place = tmp_path / where
        place.mkdir(exist_ok=True)
        (place / "model.safetensors").write_text(weights)
        info = CheckpointInfo(place, Layout.SALMA_FOLDER, 7, {"seed": 3})
        return Job(of or benchmark, info, load_config("tiny").model, load_predict(assignments, **given))

    return make


@contextmanager
def _saying(model: Salma, *answers: str) -> Iterator[None]:
    """Let the LLM give these answers to the expressions of every batch, in order and again from the first."""
    tokenizer, mllm, kept = model.tokenizer, model.mllm, model.mllm.answer
    scripts = [tokenizer(answer, add_special_tokens=False)["input_ids"] + [mllm.end_id] for answer in answers]

    def answer(prefix, questions, max_new_tokens, forced=None):
        if forced is None:
            forced = [torch.tensor(scripts[n % len(scripts)]) for n in range(len(questions))]
        return kept(prefix, questions, max_new_tokens, forced=forced)

    mllm.answer = answer
    try:
        yield
    finally:
        del mllm.answer


@pytest.fixture
def saying():
    """A context in which a model's LLM gives certain answers."""
    return _saying


@pytest.fixture
def speaking(tiny_model: Salma) -> Iterator[Salma]:
    """A random LLM does not say [SEG]; this one is held to."""
    with _saying(tiny_model, "[SEG]"):
        yield tiny_model


@pytest.fixture
def frames() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (30, 44, 3)).astype(np.uint8) for _ in range(5)]
