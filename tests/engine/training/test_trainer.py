"""Training learns, logs, stops, goes on, looks at J&F, and refuses what cannot learn."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from salmacli.checkpoints.load import load_trainer_state
from salmacli.data.training.clips import BadClip
from salmacli.data.training.mix import TrainingMix
from salmacli.data.training.order import VisitOrder
from salmacli.engine.progress import Silent
from salmacli.engine.training.trainer import Trainer
from salmacli.errors import DataError, SalmaError

FRESH_LORA = ["train.recipe=lora", "train.lora.rank=4", "train.lora.dropout=0.1"]


def logged(trainer):
    return [json.loads(line) for line in trainer.run.metrics_path.read_text().splitlines()]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Stopper(Silent):
    """Sends a signal when so many steps are done."""

    def __init__(self, after):
        self.left = after

    def advance(self, n=1, **figures):
        self.left -= n
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_learns_logs_and_saves(start, config):
    trainer = start(config("train.steps=12", "train.save_every=5", "train.keep=2", "train.warmup_fraction=0"))
    outcome = trainer.fit()
    lines = logged(trainer)
    assert [line["step"] for line in lines] == list(range(1, 13))
    parts = {"bce", "dice", "iou", "boundary", "lm", "tmc", "prior"}
    assert set(lines[0]) == {"step", "loss", "lr", "grad_norm", "bad", "left_out", "seconds", *parts}
    assert lines[-1]["lm"] < 0.8 * lines[0]["lm"] and lines[-1]["prior"] < lines[0]["prior"]
    assert [path.name for path in trainer.run.checkpoints()] == ["step-10", "step-12"], "the oldest is dropped"
    assert outcome.step == 12 and outcome.ended == "finished" and outcome.checkpoint.name == "step-12"
    assert "saved step 12" in (trainer.run.path / "logs" / "rank0.log").read_text()


@pytest.mark.parametrize(
    "more",
    [pytest.param([], marks=pytest.mark.slow), [*FRESH_LORA, "train.ema=0.9"]],
    ids=["full", "lora and average"],
)
def test_resume_ends_where_an_uninterrupted_run_ends(start, config, weights, more):
    """Also when the run is stopped by a signal in the middle, between two regular checkpoints."""
    settings = config("train.steps=6", "train.save_every=4", *more)
    whole = start(settings, "whole").fit()
    stopped = start(settings, "stopped", Stopper(3))
    first = stopped.fit()
    assert first.ended == "interrupted" and first.step == 3 and first.checkpoint.name == "step-3"
    again = Trainer(settings, stopped.mix, stopped.run).fit(stopped.run.newest_checkpoint())
    assert again.ended == "finished" and again.step == 6
    assert same(weights(whole.checkpoint), weights(again.checkpoint))
    assert [line["step"] for line in logged(stopped)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_accumulated_passes_are_a_larger_batch(start, config):
    """Whatever each pass holds: counts are of the whole step. The contrast, though, sees one pass at a time."""
    settings = ["train.steps=2", "train.save_every=2", "losses.tmc=0", "data.group_lengths=false"]
    once = start(config(*settings, "train.batch_size=4"), "once")
    twice = start(config(*settings, "train.batch_size=2", "train.accumulate=2"), "twice")
    for trainer in (once, twice):
        trainer.fit()
    for one, other in zip(logged(once), logged(twice), strict=True):
        assert {name: one[name] for name in one if name != "seconds"} == pytest.approx(
            {name: other[name] for name in other if name != "seconds"}, rel=1e-5
        )


@pytest.mark.slow
def test_validation_looks_at_a_slice_keeps_the_best_and_stops(start, config):
    settings = config(
        "train.steps=10", "train.save_every=10", "train.keep=1", "train.learning_rate=1e-7",
        "train.validation.every=1", "train.validation.videos=1", "train.validation.patience=3",
    )  # fmt: skip
    said = []

    class Listener(Silent):
        def say(self, message):
            said.append(message)

    trainer = start(settings, progress=Listener())
    outcome = trainer.fit()
    rounds = {line["step"]: line["validation_JF"] for line in logged(trainer) if "validation_JF" in line}
    best = max(rounds, key=lambda step: (rounds[step], -step))
    assert outcome.ended == "no better" and outcome.step == best + 3 == max(rounds)
    assert outcome.best == (best, rounds[best])
    assert {path.name for path in trainer.run.checkpoints()} == {f"step-{best}", f"step-{outcome.step}"}
    # With such a rate nothing changes, and that is said.
    assert any(line.startswith("fault: validation has been exactly") for line in said)
    # The looks are remembered.
    assert load_trainer_state(outcome.checkpoint)["looks"] == [[step, score] for step, score in rounds.items()]


def test_validation_looks_at_what_a_checkpoint_would_be(start, config, weights, monkeypatch):
    """Also during the warm-up of the attention, and with averages in the place of the weights."""
    settings = config(
        "train.steps=3", "train.ema=0.5", "train.warmup_fraction=0", "model.cma.warmup_fraction=1",
        "train.validation.every=1", "train.validation.videos=1",
    )  # fmt: skip
    trainer = start(settings)
    looks = []

    def look(model):
        looks.append((model.cma.scale, {name: one.clone() for name, one in model.state_dict().items()}))
        return real(model)

    real = trainer.validation.sums
    monkeypatch.setattr(trainer.validation, "sums", look)
    scales = []
    score = trainer.validation._score
    monkeypatch.setattr(
        trainer.validation, "_score", lambda *given: scales.append(trainer.model.cma.scale) or score(*given)
    )
    trainer.fit()
    assert [scale for scale, _ in looks] == [1 / 3, 2 / 3, 1] and set(scales) == {1.0}
    saved = weights(trainer.run.newest_checkpoint())
    assert all(torch.equal(saved[name], one) for name, one in looks[-1][1].items())


@pytest.mark.slow
def test_a_moving_average_is_what_is_saved(start, config, weights):
    plain = start(config("train.steps=3", "train.warmup_fraction=0"), "plain").fit()
    averaged = start(config("train.steps=3", "train.warmup_fraction=0", "train.ema=0.99"), "averaged").fit()
    one, other = weights(plain.checkpoint), weights(averaged.checkpoint)
    moved = [name for name in one if not torch.equal(one[name], other[name])]
    assert moved and not [name for name in moved if "memory" in name]


def test_a_part_without_gradient_is_named_before_the_first_step(start, config):
    trainer = start(
        config(
            "train.steps=2", "losses.bce=0", "losses.dice=0", "losses.iou=0", "losses.prior=0", "losses.tmc=0",
            "losses.boundary=0",
        )
    )  # fmt: skip
    with pytest.raises(SalmaError, match=r"no finite, non-zero gradient: .*text projector.*mask decoder"):
        trainer.fit()
    assert not trainer.run.checkpoints()


@pytest.mark.slow
def test_parts_that_do_not_move_are_named_after_five_steps(start, config):
    trainer = start(config("train.steps=9", "train.learning_rate=1e-30"))
    with pytest.raises(SalmaError, match=r"after step 5 these parts .* have not moved: token embedding, "):
        trainer.fit()


def test_a_loss_that_is_not_finite_is_named_with_its_samples(start, config):
    trainer = start(config("train.steps=3"))
    trainer._prepare(None)
    batch, _ = next(trainer._batches(0))
    batch.sam_pixels[batch.clip_of == 1] = float("nan")
    with pytest.raises(SalmaError, match=rf"step 0: not finite: loss, .*bce.*; samples: {batch.names[1]};"):
        trainer._optimise([batch], trainer._draw(iter([(batch, [])]), 0)[1], 0)


def test_a_run_whose_losses_explode_stops_before_it_saves_them(start, config):
    settings = config("train.steps=40", "train.learning_rate=1e30", "train.warmup_fraction=0", "train.clip_norm=1e30")
    trainer = start(settings)
    with pytest.raises(SalmaError, match=r"step \d+: not finite: "):
        trainer.fit()
    assert not trainer.run.checkpoints()


class _Faulty(TrainingMix):
    """A mix in which some visits cannot be read."""

    def __init__(self, mix, bad):
        self.__dict__.update(mix.__dict__)
        self.faults = bad

    def __getitem__(self, key):
        return BadClip(f"mevis/v{key[1]}", "broken") if key[1] in self.faults else super().__getitem__(key)


def test_a_bad_sample_is_dropped_counted_and_named(start, config):
    trainer = start(config("train.steps=1", "train.batch_size=3", "data.max_bad_fraction=0"))
    drawn = next(iter(VisitOrder(trainer.mix, 3, rank=0, ranks=1, first_pass=0)))
    trainer.mix = _Faulty(trainer.mix, {drawn[1][1]})
    assert trainer.fit().bad == logged(trainer)[-1]["bad"] == 1
    log = (trainer.run.path / "logs" / "rank0.log").read_text()
    assert log.count(f"dropped mevis/v{drawn[1][1]}: broken") == 1 == log.count("dropped ")


def test_more_bad_samples_than_the_limit_stop_a_run(start, config):
    trainer = start(config("train.steps=2", "train.batch_size=3", "data.max_bad_fraction=0.01"))
    trainer.mix = _Faulty(trainer.mix, {0, 1, 2, 3})
    with pytest.raises(DataError, match=r"could not be read, the last is mevis/v\d: broken"):
        trainer.fit()


@pytest.mark.slow
def test_a_permitted_rate_of_bad_samples_may_go_on_for_epochs(start, config, weights):
    """The limit is a share of the visits, not of one epoch; and a resumed run reads on where it stopped."""
    settings = config("train.steps=9", "train.batch_size=2", "data.max_bad_fraction=0.5", "train.save_every=4")
    whole = start(settings, "whole")
    whole.mix = _Faulty(whole.mix, {0, 1})
    outcome = whole.fit()
    assert outcome.bad > 2, "the bad videos came up in several epochs"
    cut = start(settings, "cut")
    checkpoint = next(path for path in whole.run.checkpoints() if path.name != "step-9")
    again = Trainer(settings, whole.mix, cut.run).fit(checkpoint)
    assert same(weights(outcome.checkpoint), weights(again.checkpoint))


@pytest.mark.slow
def test_a_run_starts_from_a_pretrained_model_and_leaves_its_encoders(start, config, weights):
    first = start(config("train.steps=2"), "first").fit().checkpoint
    base = [f"model.mllm.base={first}", "model.sam2.width=96", "train.steps=2", "train.warmup_fraction=0", *FRESH_LORA]
    second = start(config(*base), "second").fit().checkpoint
    old, new = weights(first), weights(second)
    moved = {name for name in new if not torch.equal(old[name], new[name])}
    assert any(name.startswith("mllm.model.model.language_model.layers") for name in moved), "LoRA is merged"
    assert not [name for name in moved if "vision_tower" in name or "image_encoder" in name or "memory" in name]
    # A run goes on from its own checkpoint, on its own base.
    again = start(config(*base, "train.steps=3"), "third")
    assert again.fit(second).step == 3
