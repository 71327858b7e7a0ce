"""Training on a few synthetic videos below tiny size: it learns, logs, stops, goes on, refuses what cannot learn."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from salmacli.checkpoints.load import load_checkpoint
from salmacli.config.loading import load_config
from salmacli.config.schema import RunConfig
from salmacli.data.training.clips import BadClip, Clip
from salmacli.data.training.mix import TrainingMix
from salmacli.engine.progress import Silent
from salmacli.engine.run_folder import RunFolder
from salmacli.engine.sources import open_mix
from salmacli.engine.trainer import Trainer
from salmacli.errors import DataError, SalmaError

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


def config(*assignments: str) -> RunConfig:
    return load_config("tiny", [*SMALL, *assignments])


def start(folder: Path, settings: RunConfig, name: str = "run", progress: Any = None) -> Trainer:
    mix = open_mix(settings.data, settings.model, settings.seed, Silent())
    run = RunFolder.create(folder, name, {"config": settings.model_dump(mode="json")})
    return Trainer(settings, mix, run, progress)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoint)[0].state_dict()


def test_a_run_learns_logs_and_saves(tmp_path):
    trainer = start(tmp_path, config("train.steps=12", "train.save_every=5", "train.keep=2", "train.warmup_fraction=0"))
    outcome = trainer.fit()
    lines = [json.loads(line) for line in trainer.run.metrics_path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert set(lines[0]) >= {"loss", "bce", "dice", "iou", "lm", "prior", "lr", "grad_norm", "seconds"}
    assert lines[-1]["lm"] < 0.8 * lines[0]["lm"] and lines[-1]["prior"] < lines[0]["prior"]
    assert [path.name for path in trainer.run.checkpoints()] == ["step-10", "step-12"], "the oldest is dropped"
    assert outcome.step == 12 and not outcome.interrupted and outcome.checkpoint.name == "step-12"


def test_what_is_not_meant_to_train_stays(tmp_path):
    trainer = start(tmp_path, config("train.steps=2"))
    torch.manual_seed(trainer.config.seed)
    before = trainer._model(None).state_dict()
    after = weights(trainer.fit().checkpoint)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert any(name.startswith("mllm.model.lm_head") for name in moved)
    assert not [name for name in moved if "memory" in name or "prompt_encoder" in name]


def test_resume_ends_where_an_uninterrupted_run_ends(tmp_path):
    """Also when the run is stopped by a signal in the middle, between two regular checkpoints."""
    settings = config("train.steps=6", "train.save_every=4")
    whole = start(tmp_path, settings, "whole").fit()

    class Stopper(Silent):
        def advance(self, n: int = 1, **figures: float) -> None:
            nonlocal seen
            seen += 1
            if seen == 3:
                os.kill(os.getpid(), signal.SIGINT)

    seen = 0
    stopped = start(tmp_path, settings, "stopped", Stopper())
    first = stopped.fit()
    assert first.interrupted and first.step == 3 and first.checkpoint.name == "step-3"
    again = Trainer(settings, stopped.mix, stopped.run).fit(stopped.run.newest_checkpoint())
    assert not again.interrupted and again.step == 6
    one, other = weights(whole.checkpoint), weights(again.checkpoint)
    assert all(torch.equal(one[name], other[name]) for name in one)
    logged = [json.loads(line) for line in stopped.run.metrics_path.read_text().splitlines()]
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 5, 6]


def test_a_part_without_gradient_is_named_before_the_first_step(tmp_path, monkeypatch):
    trainer = start(
        tmp_path,
        config("train.steps=2", "losses.bce=0", "losses.dice=0", "losses.iou=0", "losses.prior=0", "losses.tmc=0"),
    )
    with pytest.raises(
        SalmaError, match="text projector, SAM 2 image encoder, SAM 2 mask decoder, cross-modal attention"
    ):
        trainer.fit()
    assert not trainer.run.checkpoints()


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    settings = config("train.steps=40", "train.learning_rate=1e30", "train.warmup_fraction=0", "train.clip_norm=1e30")
    with pytest.raises(SalmaError, match=r"step \d+: not finite: .*loss"):
        start(tmp_path, settings).fit()


class _Faulty(TrainingMix):
    """A mix in which some visits cannot be read."""

    def __init__(self, mix: TrainingMix, bad: set[int]) -> None:
        self.__dict__.update(mix.__dict__)
        self.faults = bad

    def __getitem__(self, key: tuple[int, int]) -> Clip | BadClip:
        return BadClip(f"mevis/v{key[1]}", "broken") if key[1] in self.faults else super().__getitem__(key)


@pytest.mark.parametrize(("bad", "fraction", "fails"), [({0}, 0.0, False), ({0, 1, 2, 3}, 0.01, True)])
def test_bad_samples_are_dropped_and_counted_up_to_a_limit(tmp_path, bad, fraction, fails):
    settings = config("train.steps=2", "train.batch_size=3", f"data.max_bad_fraction={fraction}")
    trainer = start(tmp_path, settings)
    trainer.mix = _Faulty(trainer.mix, bad)
    if fails:
        with pytest.raises(DataError, match=r"could not be read, the last is mevis/v\d: broken"):
            trainer.fit()
    else:
        trainer.fit()
        assert trainer.bad <= 1


def test_a_permitted_rate_of_bad_samples_may_go_on_for_epochs(tmp_path):
    """The limit is a share of the visits, not of one epoch; and a resumed run reads on where it stopped."""
    settings = config("train.steps=9", "train.batch_size=2", "data.max_bad_fraction=0.5", "train.save_every=4")
    whole = start(tmp_path, settings, "whole")
    whole.mix = _Faulty(whole.mix, {0, 1})
    outcome = whole.fit()
    assert whole.bad > 2, "the bad videos came up in several epochs"
    cut = start(tmp_path, settings, "cut")
    checkpoint = next(path for path in whole.run.checkpoints() if path.name != "step-9")
    again = Trainer(settings, whole.mix, cut.run).fit(checkpoint)
    one, other = weights(outcome.checkpoint), weights(again.checkpoint)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_starts_from_a_pretrained_model_and_leaves_its_encoders(tmp_path):
    first = start(tmp_path, config("train.steps=2"), "first").fit().checkpoint
    base = [f"model.mllm.base={first}", "model.sam2.width=96", "train.steps=2"]
    second = start(tmp_path, config(*base), "second").fit().checkpoint
    old, new = weights(first), weights(second)
    moved = {name for name in new if not torch.equal(old[name], new[name])}
    assert any(name.startswith("mllm.model.model.language_model") for name in moved)
    assert not [name for name in moved if "vision_tower" in name]
    # A run goes on from its own checkpoint, not from the base.
    again = start(tmp_path, config(*base, "train.steps=3"), "third")
    assert again.fit(second).step == 3
