from __future__ import annotations

import pytest

from salmacli.config.loading import load_config, load_predict, preset_names, read_preset
from salmacli.errors import ConfigError, UsageError


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_opens_with_its_command(name):
    from importlib import resources

    load_config(name)
    text = (resources.files("salmacli.config") / "presets" / f"{name}.yaml").read_text()
    assert text.startswith(f"# salma train --preset {name}")


def test_all_errors_come_at_once_with_path_value_and_a_near_name():
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", ["train.stepz=3", "train.steps=0", "model.sam2.width=60", "losses.bce=-1"])
    message = str(caught.value)
    for part in (
        "4 wrong",
        "train.stepz is unknown, did you mean steps?",
        "train.steps = 0",
        "model.sam2: width",
        "losses.bce = -1",
    ):
        assert part in message
    assert "\n" not in message


def test_numbers_that_yaml_takes_for_texts_are_numbers():
    assert load_config("tiny", ["train.learning_rate=1e-4"]).train.learning_rate == 1e-4


def test_off_is_a_word_and_not_a_boolean():
    assert load_config("tiny", ["model.cma.mba=off", "model.cma.enabled=true"]).model.cma.mba == "off"


def test_prediction_takes_named_settings_and_texts():
    settings = load_predict(["window=64", "cma.frames=all", "cma.temporal_prior=true"], mode="frames", fallback=None)
    assert (settings.mode, settings.window, settings.cma.frames, settings.fallback) == ("frames", 64, "all", "none")
    assert settings.cma.temporal_prior is True
    assert load_predict(["mode=sa2va"], mode="frames").mode == "sa2va"


def test_all_errors_of_prediction_come_at_once_with_a_near_name():
    with pytest.raises(ConfigError) as caught:
        load_predict(["windw=64", "cma.frame=all", "memories=0"], fallback="before")
    message = str(caught.value)
    for part in ("4 wrong", "windw is unknown, did you mean window?", "cma.frame is unknown, did you mean frames?"):
        assert part in message
    assert "memories = 0" in message and "fallback = 'before'" in message and message.endswith("mend them with --set")
    with pytest.raises(ConfigError, match="overlap = 8 is not below window = 8"):
        load_predict(["window=8", "overlap=8"])
    for text, words in (
        ("foo=1", "foo is unknown, known are: mode, key_frames, "),
        ("cma.foo=1", "cma.foo is unknown, known are: frames, temporal_prior;"),
        ("cma=1", "cma is a section: set cma.frames or cma.temporal_prior;"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_predict([text])
    for text in ("window", "window.x.y=3", "=3"):
        with pytest.raises((UsageError, ConfigError)):
            load_predict([text])


@pytest.mark.parametrize(
    ("setting", "needs"), [("train.true_prompts=0.5", "train.memory"), ("train.validation.patience=3", "every")]
)
def test_what_would_do_nothing_is_refused(setting, needs):
    with pytest.raises(ConfigError, match=rf"{setting.split('=')[0]}.* does nothing without .*{needs}") as caught:
        load_config("tiny", [setting])
    assert "\n" not in str(caught.value)
    load_config("tiny", [setting, "train.memory=true", "data.decoded_frames=2", "train.validation.every=2"])


def test_settings_are_frozen():
    config = load_config("tiny")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_own_file_and_wrong_ones(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("train: [unclosed")
    with pytest.raises(ConfigError, match="not YAML at line 1"):
        read_preset(str(own))
    own.write_text("just words")
    with pytest.raises(ConfigError, match="no settings"):
        read_preset(str(own))
    with pytest.raises(UsageError, match="tiny"):
        read_preset("tinny")


@pytest.mark.parametrize("text", ["train.steps", "=3", "train.steps=[1", "seed.deep=1"])
def test_assignments_that_cannot_be_meant(text):
    with pytest.raises(UsageError):
        load_config("tiny", [text])


@pytest.mark.parametrize("size", ["1b", "4b", "8b"])
def test_pretrained_presets_name_their_bases_and_train_as_designed(size):
    config = load_config(f"salma-{size}")
    assert config.model.mllm.base == f"OpenGVLab/InternVL2_5-{size.upper()}"
    assert config.model.sam2.base == "facebook/sam2-hiera-large"
    assert config.model.inference_mode == "consistent" and config.model.sam2.two_decoders
    train, losses = config.train, config.losses
    assert train.batch_size * train.accumulate * 8 == 256
    assert (train.learning_rate, train.betas, train.weight_decay) == (4e-5, (0.9, 0.999), 0.05)
    assert (train.clip_norm, train.warmup_fraction) == (1.0, 0.05)
    assert (losses.bce, losses.dice, losses.lm, losses.tmc, losses.points) == (2.0, 0.5, 1.0, 0.1, 12_544)
    assert (losses.boundary, losses.iou, losses.ramp) == (0.05, 1.0, 0.20)
    assert (train.recipe, train.vocabulary, train.lora.rank, train.lora.alpha, train.lora.dropout) == (
        "lora",
        "all",
        128,
        256,
        0.05,
    )
    assert config.model.tiles == 12
    assert (config.data.decoded_frames, config.data.expressions, config.data.max_tokens) == (5, 5, 8192)


@pytest.mark.parametrize("size", ["1b", "4b", "8b"])
def test_pretrained_presets_train_on_the_whole_mix_with_the_published_repeats(size):
    """Source: bytedance/Sa2VA, projects/sa2va/configs/sa2va_in30_2b.py."""
    mix = load_config(f"salma-{size}").data.train
    assert {one.split for one in mix} == {"train"}
    assert {one.set: one.repeats for one in mix} == {
        "revos": 10,
        "mevis": 4,
        "refytvos": 4,
        "refsav": 4,
        "refcoco": 5,
        "refcoco+": 5,
        "refcocog": 4,
        "gcg-grandf": 50,
        "gcg-refcocog": 5,
        "gcg-flickr30k": 5,
        "gcg-openpsg": 5,
        "llava": 1,
        "chatunivi": 1,
        "osprey": 1,
    }
