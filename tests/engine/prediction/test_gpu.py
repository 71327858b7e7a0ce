"""What only a device can show; run with -m gpu."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from salmacli.config.loading import load_config
from salmacli.config.schema import PredictConfig
from salmacli.engine.prediction.predictor import Predictor
from salmacli.models.salma import Salma

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
TEXTS = [f"the {n}th circle" for n in range(5)]


@pytest.fixture(scope="module")
def video() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (30, 44, 3)).astype(np.uint8) for _ in range(11)]


def model_of(dtype: torch.dtype) -> Salma:
    torch.manual_seed(0)
    settings = ["model.cma.enabled=true", "model.sam2.two_decoders=true", "model.mask_token=best-of-three"]
    return Salma.build(load_config("tiny", settings).model, TEXTS).eval().to("cuda", dtype)


@pytest.mark.parametrize("mode", ["frames", "consistent", "sa2va"])
@pytest.mark.parametrize("more", [{}, {"window": 6}, {"fallback": "force-seg"}, {"compile": True}], ids=str)
def test_bf16_on_the_device_is_near_fp32_on_the_host(video, mode, more):
    settings = {"mode": mode, "expressions_at_once": 2, "frames_at_once": 4, **more}
    on_device = Predictor(model_of(torch.bfloat16), PredictConfig(**settings)).video(video, TEXTS, answer="[SEG]")
    on_host = Predictor(model_of(torch.float32).cpu(), PredictConfig(**{**settings, "compile": False}))
    expected = on_host.video(video, TEXTS, answer="[SEG]")
    same = [(a.masks() == b.masks()).mean() for a, b in zip(on_device, expected, strict=True)]
    assert np.mean(same) > 0.97


def test_real_lack_of_memory_is_survived(video):
    said: list[str] = []
    model = model_of(torch.float32)
    whole = Predictor(model, PredictConfig(mode="consistent")).video(video, TEXTS * 8, answer="[SEG]")
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_allocated() + 64 * 2**20) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        settings = PredictConfig(mode="consistent", expressions_at_once=40)
        parts = Predictor(model, settings, said.append).video(video, TEXTS * 8, answer="[SEG]")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert said and np.mean([a.masks() == b.masks() for a, b in zip(whole, parts, strict=True)]) > 0.999
