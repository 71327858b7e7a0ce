"""salma doctor: every fault is told, with what to do about it, and nothing is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from salmacli.cli import main
from salmacli.engine.doctor import training
from salmacli.engine.doctor.machine import Devices
from salmacli.errors import DataError

HERE = Devices("a GPU", 2, 20 * 2**30, 24 * 2**30, bf16=True, cpu=False)


@pytest.fixture(autouse=True)
def _elsewhere(small_synthetic, tmp_path, monkeypatch):
    monkeypatch.setenv("SALMA_SYNTHETIC", str(small_synthetic))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Devices, "here", classmethod(lambda cls: HERE))


@pytest.fixture
def ask(capsys):
    def asked(*words, code):
        assert main(["doctor", *words, "--json"]) == code
        record = json.loads(capsys.readouterr().out)
        assert record["exit_code"] == code
        return {check["name"]: check for check in record["checks"]}, record

    return asked


def states(checks):
    return {name: check["state"] for name, check in checks.items() if check["state"] != "ok"}


def test_the_usual_training_is_fine(ask, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    checks, record = ask("train", code=0)
    assert states(checks) == {}
    assert {row["part"]: row["trained"] for row in record["parts"]}["SAM 2 memory"] == 0
    assert record["memory"]["peak"] > record["memory"]["weights"] > 0
    assert "samples an epoch" in checks["data: mevis"]["found"] and "epochs" in checks["schedule"]["found"]
    assert sorted(tmp_path.rglob("*")) == before


def test_settings_that_are_wrong_end_it(ask):
    checks, _ = ask("train", "--set", "train.stepz=3", code=3)
    assert list(checks) == ["settings"] and "train.stepz" in checks["settings"]["found"]


def test_every_set_is_told_of(ask):
    sets = "data.train=[{set: mevis, root: nowhere}, {set: llava}, {set: revos}]"
    checks, _ = ask("train", "--set", sets, code=4)
    assert states(checks) == {"data: mevis": "fault", "data: llava": "fault"}
    assert "usual samples" in checks["memory"]["found"] and "dialogues" in checks["memory"]["found"]
    assert "nowhere" in checks["data: mevis"]["found"] and checks["data: llava"]["mend"]


def test_samples_that_cannot_be_read_are_a_fault(ask, small_synthetic, tmp_path, monkeypatch):
    copy = shutil.copytree(small_synthetic, tmp_path / "copy")
    for picture in copy.rglob("*.jpg"):
        picture.write_bytes(b"no picture")
    monkeypatch.setenv("SALMA_SYNTHETIC", str(copy))
    checks, _ = ask("train", code=4)
    assert states(checks) == {"data: mevis": "fault", "data: revos": "fault"}
    assert "salma data verify" in checks["data: mevis"]["mend"]


def test_bases_are_looked_for_and_not_fetched(ask):
    checks, record = ask("train", "--set", "model.mllm.base=nowhere/at/all", code=4)
    # A pretrained model is not meant for the synthetic benchmark.
    assert states(checks) == {"base: mllm": "fault", "data: mevis": "warning", "data: revos": "warning"}
    assert not record["parts"]


def test_a_base_on_the_hub_is_a_warning_while_there_is_a_network(monkeypatch):
    monkeypatch.setattr(training.constants, "HF_HUB_OFFLINE", False)
    check = training._base("someone/some-model-that-is-not-here", "mllm")
    assert check.state == "warning" and check.mend == "fetch it now: hf download someone/some-model-that-is-not-here"


def test_what_the_machine_lacks_is_told(ask, monkeypatch):
    small = replace(HERE, total=2**30, free=2**29)
    monkeypatch.setattr(Devices, "here", classmethod(lambda cls: small))
    monkeypatch.setattr(training, "free_disk", lambda folder: 10)
    checks, _ = ask("train", "--num-gpus", "4", code=1)
    assert states(checks) == {"devices": "fault", "memory": "fault", "disk": "fault"}
    assert "gradient_checkpointing" in checks["memory"]["mend"]


def test_missing_packages_are_faults_of_the_settings(ask, monkeypatch):
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    checks, _ = ask("train", "--set", "train.recipe=lora", "--set", "train.quantize=4bit", code=3)
    assert "bitsandbytes" in checks["packages"]["found"]


def test_what_training_would_refuse_is_a_fault(ask, monkeypatch):
    """Devices that cannot share a model, and sets that cannot be described."""
    checks, _ = ask("train", "--set", "train.sharding=fsdp2", code=3)
    assert states(checks) == {"sharding": "fault"} and "there is one" in checks["sharding"]["found"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    checks, _ = ask("train", "--set", "train.sharding=fsdp2", "--num-gpus", "2", code=3)
    assert "between GPUs only" in checks["sharding"]["found"]

    def broken(sets):
        raise DataError("broken")

    monkeypatch.setattr(training, "describe", broken)
    checks, _ = ask("train", code=4)
    assert states(checks) == {"data: mevis": "fault", "data: revos": "fault"}


def test_prediction_and_evaluation(ask, run_checkpoint, tmp_path):
    checks, record = ask("eval", "mevis", "--checkpoint", str(run_checkpoint), code=0)
    assert states(checks) == {} and record["memory"]["peak"] > 0
    assert "videos" in checks["data"]["found"] and "step 7" in checks["checkpoint"]["found"]
    assert ask("eval", "--checkpoint", str(run_checkpoint), code=0)[0]["data"] == checks["data"]  # as README shows it
    checks, _ = ask("predict", "nothing.mp4", "--checkpoint", str(run_checkpoint), code=4)
    assert states(checks) == {"frames": "fault"}
    weights = run_checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    checks, _ = ask("predict", "--checkpoint", str(run_checkpoint), code=4)
    assert states(checks) == {"checkpoint": "fault"}


def test_tables_for_people(capsys):
    assert main(["doctor", "train"]) == 0
    told = capsys.readouterr()
    assert "SAM 2 mask decoder" in told.out and "at one time" in told.out and "schedule" in told.out
    assert told.err.endswith("0 faults, 0 warnings\n")
