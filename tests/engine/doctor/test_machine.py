from __future__ import annotations

from importlib import metadata

import pytest

from salmacli.engine.doctor import machine
from salmacli.engine.doctor.machine import Devices, free_disk, wrong_versions


def test_packages_out_of_range_or_missing_are_named(monkeypatch):
    installed = metadata.version

    def version(name):
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return {"numpy": "1.20.0", "torch": "2.6.0+cu124"}.get(name) or installed(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(machine.platform, "python_version", lambda: "3.9.1")
    wrong = wrong_versions()
    assert [one.split()[0] for one in wrong] == ["Python", "numpy", "peft"]
    assert wrong[1].startswith("numpy 1.20.0, not >=")


def test_optional_packages_need_not_be_there():
    assert not [one for one in wrong_versions() if "ruff" in one or "wandb" in one]


def test_room_is_told_of_folders_that_are_not_there_yet(tmp_path):
    assert free_disk(tmp_path / "runs" / "first") > 0


def test_a_machine_without_gpu_tells_its_memory(monkeypatch):
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    here = Devices.here()
    assert here.cpu and here.count == 1 and 0 < here.free <= here.total


@pytest.mark.gpu
def test_gpus_tell_theirs():
    here = Devices.here()
    assert not here.cpu and here.count >= 1 and 0 < here.free <= here.total
