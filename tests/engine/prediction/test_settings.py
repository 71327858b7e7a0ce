"""Which settings change results, and how they are told apart on disk."""

from __future__ import annotations

import pytest

from salmacli.config.loading import load_config, load_predict
from salmacli.config.schema import PredictConfig
from salmacli.engine.prediction.settings import assignments, changed, changing, label, resolved, speed
from salmacli.errors import ConfigError

OWN = ["model.inference_mode=consistent", "model.clip_frames=5"]
MODEL = load_config("tiny", ["model.cma.enabled=true", *OWN]).model


def test_what_is_null_becomes_the_modes_or_the_models_own():
    ours = resolved(PredictConfig(), MODEL)
    assert (ours.mode, ours.key_frames, ours.choice) == ("consistent", 5, "uniform")
    assert resolved(PredictConfig(mode="sa2va"), MODEL).choice == "first"
    assert resolved(PredictConfig(key_frames=9), {"inference_mode": "frames"}).mode == "frames"
    assert resolved(PredictConfig(), {}).key_frames == 5
    with pytest.raises(ConfigError, match="sa2va shows the first frames"):
        resolved(PredictConfig(choice="uniform"), {"inference_mode": "sa2va"})


@pytest.mark.parametrize("text", ["cma.frames=all", "cma.temporal_prior=true"])
@pytest.mark.parametrize("model", [load_config("tiny", OWN).model, {}, {"cma": {"enabled": False}}])
def test_an_attention_that_is_not_there_cannot_be_set(text, model):
    with pytest.raises(ConfigError, match="no cross-modal attention"):
        resolved(load_predict([text]), model)
    assert resolved(load_predict([text]), {"cma": {"enabled": True}}).cma == load_predict([text]).cma


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], "consistent"),
        (["mode=consistent", "key_frames=5", "choice=uniform", "fallback=none"], "consistent"),  # the defaults, said
        (["readers=9", "compile=true", "frames_at_once=1", "expressions_at_once=1", "attention=eager"], "consistent"),
        (["memories=6", "conditioning=5"], "consistent"),  # all there are
        (["memories=5", "conditioning=4"], "consistent+conditioning=4+memories=5"),
        (["key_frames=3", "conditioning=3"], "consistent+key_frames=3"),
        (["mode=frames", "memories=2", "conditioning=1"], "frames"),  # which remembers nothing
        (["cached_frames=9"], "consistent"),
        (["window=64", "fallback=prior"], "consistent+fallback=prior+window=64"),
        (["window=64", "overlap=8"], "consistent+window=64"),
        (["window=64", "overlap=4"], "consistent+overlap=4+window=64"),
        (["choice=diverse", "cached_frames=9"], "consistent+cached_frames=9+choice=diverse"),
        (["mode=sa2va", "choice=first", "cma.temporal_prior=true"], "sa2va+cma.temporal_prior=true"),
        (["mode=frames", "precision=bf16", "cma.frames=all"], "frames+cma.frames=all+precision=bf16"),
    ],
)
def test_a_folder_is_named_by_the_mode_and_what_differs_from_its_defaults(texts, expected):
    assert label(load_predict(texts), MODEL) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [("overlap=0", "overlap needs a window"), ("memories=7", "SAM 2 was trained with 6")],
)
def test_what_cannot_be_meant_is_refused(text, message):
    for mode in ("frames", "consistent"):
        with pytest.raises(ConfigError, match=message):
            resolved(load_predict([text], mode=mode), MODEL)


def test_settings_that_are_resolved_stay_as_they_are():
    ours = resolved(load_predict(["memories=6", "conditioning=9", "window=64"]), MODEL)
    assert (ours.memories, ours.conditioning) == (None, None) and resolved(ours, MODEL) == ours


def test_every_setting_is_one_that_changes_results_or_one_of_speed():
    settings = resolved(load_predict(["window=64", "choice=diverse"]), MODEL)
    names = {name for name, _ in _leaves(settings.model_dump())}
    assert set(changing(settings)) | set(speed(settings)) == names
    assert set(changing(settings)) & set(speed(settings)) == {"cached_frames"}
    assert changing(settings)["overlap"] == 8
    assert changed(load_predict(["window=64"]), MODEL) == {"window": 64}


def test_what_the_user_has_set_is_read_back_the_same():
    settings = load_predict(["window=64", "cma.temporal_prior=true", "choice=null"], mode="frames")
    assert load_predict(assignments(settings)) == settings
    assert assignments(settings) == ["mode=frames", "window=64", "cma.temporal_prior=true"]


def _leaves(content, path=""):
    for name, value in content.items():
        yield from _leaves(value, f"{path}{name}.") if isinstance(value, dict) else [(f"{path}{name}", value)]
