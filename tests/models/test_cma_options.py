"""Every combination of the attention's options, in whole models: trains, saves, loads, and predicts what it trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from salmacli.checkpoints.load import load_checkpoint
from salmacli.checkpoints.save import save_checkpoint
from salmacli.config.loading import load_config
from salmacli.config.schema import AttentionInPrediction, CmaConfig, LossConfig, ModelConfig, PredictConfig
from salmacli.data.collate import Batch, Collator
from salmacli.data.conversation import Turn
from salmacli.data.templates import ANSWERS, QUESTIONS
from salmacli.data.training.clips import Clip
from salmacli.engine.prediction.predictor import Predictor
from salmacli.models.losses import Counts, total_loss
from salmacli.models.salma import Salma
from salmacli.models.trained import trained_parts

TEXTS = ("the red circle", "the blue square on the left")
ROWS = yaml.safe_load((Path(__file__).parent / "cma_options.yaml").read_text(encoding="utf-8"))
# Those with the most in them; the others are slow.
CHEAP = (7, 9)
SMALL = ("model.sam2.image_size=64", "model.clip_frames=2")


@pytest.fixture(scope="module")
def base() -> Salma:
    torch.manual_seed(0)
    return Salma.build(load_config("tiny", SMALL).model, TEXTS)


@pytest.fixture(
    params=[pytest.param(row, id=str(n), marks=[] if n in CHEAP else [pytest.mark.slow]) for n, row in enumerate(ROWS)]
)
def model(request: pytest.FixtureRequest, base: Salma) -> Salma:
    """As if trained for a while: nothing is at 0 any more."""
    options = dict(request.param)
    mask_token = options.pop("mask_token")
    cma = CmaConfig(enabled=True, **options)
    config = ModelConfig.model_validate({**base.config.model_dump(), "cma": cma, "mask_token": mask_token})
    torch.manual_seed(0)
    model = Salma(config, base.tokenizer)
    model.load_state_dict(base.state_dict(), strict=False)
    for name, parameter in model.named_parameters():
        if name.startswith("cma.") and name.endswith("gamma"):
            parameter.data.fill_(0.5)
    return model.eval()


def clip(frames: int) -> Clip:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (frames, 40, 60, 3)).astype(np.uint8)
    return Clip(
        name="test",
        shown=tuple(pictures[n % frames] for n in range(2)),
        frames=tuple(pictures),
        dialogues=tuple((Turn(QUESTIONS[0], ANSWERS[0], text),) for text in TEXTS),
        targets=tuple((str(n),) for n in range(len(TEXTS))),
        masks=rng.random((len(TEXTS), frames, 40, 60)) > 0.5,
        foreground=rng.random((frames, 40, 60)) > 0.5,
    )


def collate(model: Salma, frames: int) -> Batch:
    sizes = model.mllm.frame_size, model.mllm.tokens_per_frame, model.config.sam2.image_size
    return Collator(model.tokenizer, *sizes).batch([clip(frames)])


def test_it_trains_saves_loads_and_predicts_what_it_trained(model, tmp_path):
    _trains(model, collate(model, frames=2))
    batch = collate(model, frames=1)
    with torch.no_grad():
        trained = model(batch).masks.logits  # (expressions, h, w): one frame
    config = {"seed": 0, "model": model.config.model_dump(mode="json")}
    save_checkpoint(tmp_path / "step-1", model, config=config, step=1, trainer_state={})
    loaded, _ = load_checkpoint(tmp_path / "step-1")
    assert loaded.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert torch.allclose(_predicted(loaded, 1, mode="frames")[:, 0], trained, atol=1e-5)
    everywhere = AttentionInPrediction(frames="all", temporal_prior=True)
    propagated = _predicted(loaded, 4, mode="consistent", key_frames=1, cma=everywhere)
    assert propagated.shape[:2] == (2, 4) and bool(propagated.isfinite().all())
    plain = _predicted(loaded, 4, mode="consistent", key_frames=1)
    assert torch.equal(plain[:, 0], propagated[:, 0]) and not torch.equal(plain[:, 1:], propagated[:, 1:])


def _trains(model: Salma, batch: Batch) -> None:
    """One step: every part has a gradient, and every parameter of the attention moves."""
    assert model.cma is not None
    before = {name: value.clone() for name, value in model.cma.state_dict().items()}
    loss, _ = total_loss(model(batch), batch, LossConfig(points=64, prior=1.0), Counts(4, 20, 2))
    loss.backward()
    for name, part in trained_parts(model, load_config("tiny", SMALL)).items():
        gradients = [p.grad for p in part.values() if p.grad is not None]
        assert all(bool(g.isfinite().all()) for g in gradients) and any(bool(g.any()) for g in gradients), name
    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0).step()
    # What is the same for all keys cancels in the softmax.
    still = [name for name, value in model.cma.state_dict().items() if torch.equal(value, before[name])]
    assert [name for name in still if name != "router.score.bias" and not name.endswith("key.bias")] == []


def _predicted(model: Salma, frames: int, **settings: Any) -> torch.Tensor:
    """(expressions, frames, h, w) logits."""
    predictor = Predictor(model, PredictConfig(**settings))
    pictures = list(clip(frames).frames)
    tracks = predictor.video(pictures, TEXTS, answer=ANSWERS[0], keep_logits=True)
    return torch.stack([torch.from_numpy(np.asarray(track.logits)) for track in tracks])
