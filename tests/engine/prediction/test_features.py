"""Frames are read once, encoded once, and few are held, however long the video is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from salmacli.config.schema import PredictConfig
from salmacli.data.frames import FrameSource, arrays
from salmacli.engine.prediction.batches import BatchSize
from salmacli.engine.prediction.features import VideoFeatures
from salmacli.engine.prediction.predictor import Predictor
from salmacli.errors import DataError

LONG = 60


@pytest.fixture
def source() -> FrameSource:
    return arrays([np.full((16, 20, 3), n, np.uint8) for n in range(LONG)])


@pytest.fixture
def read(source, monkeypatch) -> Counter[int]:
    """How often each frame was read."""
    counted: Counter[int] = Counter()
    original = type(source)._load
    monkeypatch.setattr(type(source), "_load", lambda self, n: counted.update([n]) or original(self, n))
    return counted


@pytest.fixture
def features(tiny_model, source) -> VideoFeatures:
    return VideoFeatures(tiny_model, "frames", source, BatchSize(4, "frames", print), readers=2)


@torch.inference_mode()
def test_frames_come_in_order_whoever_holds_them(features, tiny_model, source):
    from salmacli.engine.prediction.sights import to_sam2

    features.hold([3, 50])
    order = [7, 3, 2, 50, 51]
    found = [(numbers, group) for numbers, group in features.stream(order, keep=(2,))]
    assert [number for numbers, _ in found for number in numbers] == order
    expected = tiny_model.grounding.encode(to_sam2(tiny_model, "frames", [source[n] for n in order]))
    assert torch.allclose(torch.cat([group.stride16 for _, group in found]), expected.stride16, atol=1e-5)
    assert torch.allclose(features.at([2]).stride4, expected.stride4[2:3], atol=1e-5)
    assert features.encoded == 5
    features.keep((50,))
    assert set(features._held) == {50}


@pytest.mark.parametrize("way", [
    {"mode": "frames"},
    {"mode": "sa2va"},
    {"mode": "consistent", "choice": "diverse", "cached_frames": 20},
    {"mode": "consistent", "window": 30, "overlap": 4},
], ids=str)  # fmt: skip
def test_a_long_video_is_read_once_and_few_frames_are_held(tiny_model, source, read, way, monkeypatch):
    most = []
    stream = VideoFeatures.stream

    def watched(self, numbers, keep=()):
        for group in stream(self, numbers, keep):
            most.append(len(self._held))
            yield group

    monkeypatch.setattr(VideoFeatures, "stream", watched)
    track = Predictor(tiny_model, PredictConfig(**way)).video(source, ["a circle"], answer="[SEG]")[0]
    assert len(track.counts) == LONG and all(track.counts)
    windows = "window" in way
    assert max(most) <= way.get("cached_frames", 4 + 8 * windows), "held: key frames, and what windows share"
    assert set(read) == set(range(LONG))
    # The first frame is read for its size; a key frame that was encoded for the window before, again for the LLM.
    assert sum(read.values()) - LONG <= 1 + 4 * windows


@torch.inference_mode()
def test_an_unreadable_frame_in_the_middle_is_named(tiny_model, source, monkeypatch):
    original = type(source)._load

    def broken(self, number):
        if number == 40:
            raise DataError("frame 00040 cannot be read (truncated)", "copy it again")
        return original(self, number)

    monkeypatch.setattr(type(source), "_load", broken)
    finished: list[int] = []
    with pytest.raises(DataError, match="00040"):
        Predictor(tiny_model, PredictConfig(mode="consistent", frames_at_once=4)).video(
            source, ["a circle"], answer="[SEG]", advance=finished.append
        )
    assert 30 < sum(finished) < 45, "what came before it was done"
