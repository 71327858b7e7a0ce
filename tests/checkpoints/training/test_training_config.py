from __future__ import annotations

from pathlib import Path

import pytest

from salmacli.checkpoints.training.lora import LoraSettings
from salmacli.checkpoints.training.training_config import read_lora_settings
from salmacli.errors import ConfigError

PROGRAM = """
from somewhere import LoraConfig, Model
import os
os.system("touch {touched}")
rank = 64
model = dict(
    type=Model,
    mllm=dict(
        type=Model,
        llm_lora=dict(type=LoraConfig, r=2 * rank, lora_alpha=256, lora_dropout=0.05, target_modules=None),
        visual_encoder_lora=dict(type=LoraConfig, r=8, lora_alpha=16),
    ),
)
"""


def _file(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_program_is_read_and_never_run(tmp_path: Path) -> None:
    path = _file(tmp_path, "sa2va.py", PROGRAM.format(touched=tmp_path / "touched"))
    assert read_lora_settings(path) == LoraSettings(256.0, 128, False, LoraSettings(16.0, 8, False))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("c.py", "lora = LoraConfig(r=8, lora_alpha=16, use_rslora=True)", LoraSettings(16.0, 8, True)),
        ("c.yaml", "model: {lora: {rank: 8, lora_alpha: 16}}", LoraSettings(16.0, 8, False)),
        (
            "adapter_config.json",
            '{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "rank_pattern": {}}',
            LoraSettings(16.0, 8, False),
        ),
        ("case.json", '{"training_v2": {"lora_r": 8, "lora_alpha": 16}}', LoraSettings(16.0, 8, False)),
        ("c.json", '[{"lora_alpha": 16}, {"other": {"lora_alpha": 16}}]', LoraSettings(16.0)),
        ("c.json", '{"lora_alpha": 16, "use_rslora": true}', LoraSettings(16.0, None, True)),
        ("c.json", '{"lora_alpha": 16, "init_lora_weights": "gaussian"}', LoraSettings(16.0)),
        ("c.yaml", "llm_lora: &a {r: 8, lora_alpha: 16}\nother: *a", LoraSettings(16.0, 8, False)),
        (
            "c.yaml",
            "llm_lora: &a {r: 8, lora_alpha: 16}\nvisual_encoder_lora: *a",
            LoraSettings(16.0, 8, False, LoraSettings(16.0, 8, False)),
        ),
    ],
)
def test_other_forms(tmp_path: Path, name: str, text: str, expected: LoraSettings) -> None:
    assert read_lora_settings(_file(tmp_path, name, text)) == expected


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("c.py", "model = dict(r=8)", "no lora_alpha"),
        ("c.py", "model = (", "not Python"),
        ("c.py", "model = dict(lora_alpha=alpha_from_elsewhere)", "lora_alpha is None"),
        ("c.py", "a = dict(lora_alpha=1 / 0)", "not Python"),
        ("c.yaml", "a: {lora_alpha: 16, r: 8}\nb: {lora_alpha: 32, r: 8}", "several lora_alpha: 16"),
        ("c.yaml", "a: {lora_alpha: 16, r: -8}", "r is -8"),
        ("c.yaml", "a: [", "not valid YAML"),
        ("c.json", "{", "not valid JSON"),
        ("c.json", '{"lora_alpha": 16, "alpha_pattern": {"q_proj": 8}}', "alpha_pattern"),
        ("c.json", '{"lora_alpha": NaN}', "NaN is no number"),
        ("c.yaml", "lora_alpha: .nan", "lora_alpha is nan"),
        ("c.yaml", "lora_alpha: .inf", "lora_alpha is inf"),
        ("c.json", f'{{"lora_alpha": {10**400}}}', "not a number above 0"),
        ("c.json", '{"lora_alpha": 16, "init_lora_weights": "pissa_niter_16"}', "'pissa_niter_16', which may have"),
        ("c.py", "lora = LoraConfig(lora_alpha=16, init_lora_weights='olora')", "init_lora_weights is 'olora'"),
        ("c.json", '{"lora_alpha": 16, "use_rslora": "false"}', "use_rslora is 'false'"),
        ("c.json", '{"a": {"lora_alpha": 8, "use_rslora": true}, "b": {"lora_alpha": 8}}', r"8, 8 \(use_rslora True\)"),
        ("c.yaml", "a: &a {b: *a}", "contains itself"),
        ("c.yaml", "a: &a [*a]", "contains itself"),
        ("c.yaml", "a: " + "[" * 5000, "nested too deeply"),
        ("c.yaml", "a: 2020-13-45", "not valid YAML"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, name: str, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_lora_settings(_file(tmp_path, name, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.py cannot be read"):
        read_lora_settings(tmp_path / "no.py")


def test_what_many_refer_to_is_visited_once(tmp_path: Path) -> None:
    text = "a0: &a0 {lora_alpha: 16}\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 15)
    )
    path = _file(tmp_path, "c.yaml", text)
    assert read_lora_settings(path) == LoraSettings(16.0)
