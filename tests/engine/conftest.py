"""A benchmark of a few boxes held in memory, and predictions for it on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from salmacli.data.records import Expression, Video
from salmacli.data.rle import encode
from salmacli.metrics.bits import Bits

SIZE = (40, 60)


@dataclass
class FakeBenchmark:
    name: str
    videos: tuple[Video, ...]
    masks: dict[tuple[str, str], np.ndarray]
    split: str = "valid"
    root: Path = Path("nowhere")
    synthetic: bool = False
    public: bool = True

    def truth(self, video, expression):
        if not self.public:
            return None
        return [encode(mask) for mask in self.masks[video.name, expression.id]]

    def truth_bits(self, video, expression):
        if not self.public:
            return None
        return [Bits.of_mask(mask, by_columns=True) for mask in self.masks[video.name, expression.id]]

    def objects(self, video, expression):
        return [self.truth(video, expression)]

    def annotated_bits(self, video):
        return None


def fake_benchmark(name="mevis", videos=3, frames=4, expressions=None, seed=0):
    """Each expression's truth is a box that moves to the right; expressions without targets have none."""
    rng = np.random.default_rng(seed)
    expressions = expressions or (
        Expression("0", "the red box", ("0",), tags={"category": "attribute", "distractor": True}),
        Expression("1", "the box moving right", ("1",), tags={"category": "motion", "distractor": False}),
        Expression("2", "the purple box", (), "no-target", tags={"category": "none", "distractor": False}),
    )
    frame_names = tuple(f"{f:05d}" for f in range(frames))
    all_videos = tuple(Video(f"v{v}", frame_names, tuple(expressions)) for v in range(videos))
    masks = {}
    for video in all_videos:
        for expression in expressions:
            mask = np.zeros((frames, *SIZE), dtype=bool)
            if expression.targets:
                y, x, side = rng.integers(2, 15), rng.integers(2, 25), rng.integers(8, 18)
                for f in range(frames):
                    mask[f, y : y + side, x + f : x + f + side] = True
            masks[video.name, expression.id] = mask
    return FakeBenchmark(name, all_videos, masks)


def write_predictions(folder, benchmark, masks=None, logits=None, **record):
    """Predictions in the predictor's layout; the truth itself where ``masks`` says nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for video in benchmark.videos:
        expressions = {}
        for expression in video.expressions:
            mask = (masks or {}).get((video.name, expression.id), benchmark.masks[video.name, expression.id])
            expressions[expression.id] = {
                "text": expression.text,
                "answer": "It is [SEG].",
                "fallback": None,
                "masks": [encode(m)["counts"] for m in mask],
            }
        content = {"schema": 1, "video": video.name, "size": list(SIZE), "frames": list(video.frames)}
        (folder / f"{video.name}.json").write_text(json.dumps({**content, "expressions": expressions}))
        if logits is not None:
            np.savez(folder / f"{video.name}.npz", **{e.id: logits[video.name, e.id] for e in video.expressions})
    about = {
        "schema": 1,
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "mode": "frames",
        "complete": True,
    }
    (folder / "prediction.json").write_text(json.dumps({**about, **record}))
    return folder


@pytest.fixture
def make_benchmark():
    return fake_benchmark


@pytest.fixture
def make_predictions():
    return write_predictions
