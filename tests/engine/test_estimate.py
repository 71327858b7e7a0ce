"""The formula of memory against whole steps on fake tensors."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from salmacli.config.loading import load_config
from salmacli.config.schema import PredictConfig, TrainingSet
from salmacli.engine.estimate import Load, prediction_memory, training_memory
from salmacli.engine.prediction.settings import resolved

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# A tiny model, and a few of everything: a step on fake tensors takes seconds.
SMALL = ["data.decoded_frames=3", "train.batch_size=2", "data.expressions=2", "model.cma.enabled=true"]
REAL = ["model.cma.enabled=true"]


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_fake_step")


def ratio(fake, config, *, bf16):
    model = fake.model_of(config, bf16=bf16)
    batch = fake.batch_of(model, fake.clips_of(config, config.train.batch_size))
    told = training_memory(model, config, fake.load_of(batch), bf16=bf16, cpu=True)
    return told.peak / fake.measured_peak(model, config, batch, bf16=bf16)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["train.recipe=lora", "train.lora.rank=16"],
        ["train.recipe=decoder-only"],
        ["train.gradient_checkpointing=true", "model.clip_frames=8"],
        ["train.memory=true", "data.decoded_frames=5"],
        ["train.memory=true", "data.decoded_frames=5", "train.gradient_checkpointing=true"],
    ],
)
def test_tells_it_for_every_recipe(fake, settings, bf16):
    assert 0.85 < ratio(fake, load_config("tiny", [*SMALL, *settings]), bf16=bf16) < 1.15


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [[], ["train.gradient_checkpointing=true"], ["train.recipe=full"], ["data.expressions=2"]]
)
def test_tells_it_at_the_size_of_internvl_1b_and_hiera_l(fake, settings):
    assert 0.85 < ratio(fake, load_config("salma-1b", [*REAL, *settings]), bf16=True) < 1.15


def test_what_stays_is_counted_and_shared(fake):
    config = load_config("tiny", [*SMALL, "train.recipe=lora", "train.lora.rank=16", "train.ema=0.99"])
    model = fake.model_of(config, bf16=False)
    load = Load.usual(config, model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    alone = training_memory(model, config, load, bf16=False)
    assert (alone.gradients, alone.optimizer, alone.average) == (4 * trained, 8 * trained, 4 * trained)
    assert alone.weights >= sum(parameter.numel() * 4 for parameter in model.parameters())
    zero2, fsdp2 = (
        training_memory(
            model,
            config.model_copy(update={"train": config.train.model_copy(update={"sharding": sharding})}),
            load,
            bf16=False,
            devices=4,
        )
        for sharding in ("zero2", "fsdp2")
    )
    assert (zero2.weights, zero2.gradients, zero2.optimizer) == (alone.weights, trained, 2 * trained)
    assert (fsdp2.weights, fsdp2.average) == (alone.weights // 4, trained)


def test_grows_with_the_batch(fake):
    config = load_config("tiny", SMALL)
    model = fake.model_of(config, bf16=False)
    load = Load.usual(config, model)
    peak = training_memory(model, config, load, bf16=False).peak
    for name in ("samples", "tokens", "pictures", "frames", "masks"):
        more = replace(load, **{name: 4 * getattr(load, name)})
        assert training_memory(model, config, more, bf16=False).peak > peak, name
    later = config.model_copy(update={"train": config.train.model_copy(update={"accumulate": 2})})
    assert training_memory(model, later, load, bf16=False).peak > peak


def test_the_usual_load_is_not_smaller_than_a_batch_of_expressions(fake):
    config = load_config("tiny", SMALL)
    model = fake.model_of(config, bf16=False)
    held = fake.load_of(fake.batch_of(model, fake.clips_of(config, config.train.batch_size)))
    usual = Load.usual(config, model)
    assert all(getattr(usual, name) >= value for name, value in vars(held).items()), (usual, held)


def test_a_set_is_one_of_pictures_or_of_videos(fake):
    model = fake.model_of(load_config("tiny", SMALL), bf16=False)
    for name in get_args(TrainingSet):
        config = load_config("tiny", [*SMALL, f"data.train=[{{set: {name}}}]"])
        videos = name in ("mevis", "revos", "refytvos", "davis", "refsav", "chatunivi")
        assert Load.usual(config, model).frames == config.train.batch_size * (3 if videos else 1), name


def test_prediction_takes_less_in_smaller_pieces(fake):
    config = load_config("tiny", SMALL)
    model = fake.model_of(config, bf16=False)
    usual, small = (
        prediction_memory(model, resolved(settings, model.config), bf16=False)
        for settings in (
            PredictConfig(mode="consistent", **pieces)
            for pieces in ({}, {"frames_at_once": 1, "expressions_at_once": 1})
        )
    )
    assert usual.weights == small.weights == sum(4 * parameter.numel() for parameter in model.parameters())
    assert usual.peak > small.peak
