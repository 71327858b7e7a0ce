"""Runs on a few synthetic videos, below tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest

from salmacli.checkpoints.load import load_checkpoint
from salmacli.config.loading import load_config
from salmacli.engine.progress import Silent
from salmacli.engine.run_folder import RunFolder
from salmacli.engine.sources import open_mix, open_source
from salmacli.engine.training.trainer import Trainer

SMALL = [
    "model.cma.enabled=true",
    "model.clip_frames=2",
    "model.sam2.image_size=64",
    "train.batch_size=2",
    "train.log_every=1",
    "data.expressions=2",
    "data.decoded_frames=1",
    "data.train=[{set: mevis}]",
    "losses.points=64",
    "data.workers=0",
]


@pytest.fixture(autouse=True)
def synthetic(small_synthetic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALMA_SYNTHETIC", str(small_synthetic))


@pytest.fixture
def config():
    return lambda *assignments: load_config("tiny", [*SMALL, *assignments])


@pytest.fixture
def start(tmp_path):
    def begin(settings, name="run", progress=None):
        mix = open_mix(settings.data, settings.model, settings.seed, Silent())
        run = RunFolder.create(tmp_path, name, {"config": settings.model_dump(mode="json")})
        look = settings.train.validation
        benchmark = open_source(look.set, look.root, look.split, Silent()) if look.every else None
        return Trainer(settings, mix, run, progress, benchmark)

    return begin


@pytest.fixture
def weights():
    return lambda checkpoint: load_checkpoint(checkpoint)[0].state_dict()
