"""The run folder: made once, found again, checkpoints by step."""

from __future__ import annotations

import os

import pytest

from salmacli.engine.run_folder import RunFolder, provenance
from salmacli.errors import DataError


def test_a_run_is_made_once_and_read_back(tmp_path):
    run = RunFolder.create(tmp_path, "a", {"config": {"seed": 1}})
    assert (run.name, run.record()["config"]) == ("a", {"seed": 1})
    assert run.metrics_path == tmp_path / "a" / "metrics.jsonl"
    assert run.eval_folder("mevis", "frames") == tmp_path / "a" / "eval" / "mevis" / "frames"
    RunFolder.create(tmp_path, "a", {"config": {"seed": 2}})  # its start had failed
    assert run.record()["config"] == {"seed": 2}
    with run.locked():
        with pytest.raises(DataError, match="another process trains"), RunFolder(tmp_path / "a").locked():
            pass
        with run.locked(wanted=False), pytest.raises(DataError, match="exists already"):
            RunFolder.create(tmp_path, "a", {})
    run.metrics_path.touch()
    with pytest.raises(DataError, match="exists already"):
        RunFolder.create(tmp_path, "a", {})


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".."])
def test_names_stay_below_the_root(name, tmp_path):
    with pytest.raises(DataError, match="not a plain name"):
        RunFolder.create(tmp_path, name, {})
    with pytest.raises(DataError, match="not a plain name"):
        RunFolder.create(tmp_path, "run", {}).eval_folder("mevis", name)


def test_the_newest_run_is_the_one_created_last(tmp_path):
    for name in ("b", "c", "a"):
        RunFolder.create(tmp_path, name, {})
    # Copying or touching a folder changes file times but not when the run was made.
    os.utime(tmp_path / "b" / "run.json", (2e9, 2e9))
    assert RunFolder.newest(tmp_path).name == "a"
    assert [run.name for run in RunFolder.all(tmp_path)] == ["a", "b", "c"]


def test_a_run_is_chosen_by_folder_by_name_or_as_the_newest(tmp_path):
    for name in ("a", "b"):
        RunFolder.create(tmp_path, name, {})
    assert RunFolder.choose(tmp_path / "a", tmp_path).name == "a"
    assert RunFolder.choose("a", tmp_path).name == "a"
    assert RunFolder.choose(None, tmp_path).name == "b"
    with pytest.raises(DataError, match="c is not a run"):
        RunFolder.choose("c", tmp_path)


def test_no_run_says_how_to_make_one(tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="salma train --cma --topk 2"):
            RunFolder.newest(root)
    with pytest.raises(DataError, match=r"run\.json is missing"):
        RunFolder(tmp_path)


def test_checkpoints_are_sorted_by_step_and_only_whole_ones_count(tmp_path):
    run = RunFolder.create(tmp_path, "a", {})
    with pytest.raises(DataError, match="no checkpoint yet"):
        run.newest_checkpoint()
    for name in ("step-100", "step-20", "step-3", ".step-500.part", "step-600.tmp", "step-x"):
        (run.path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in run.checkpoints()] == ["step-3", "step-20", "step-100"]
    assert run.newest_checkpoint().name == "step-100"


def test_pruning_keeps_the_newest(tmp_path):
    run = RunFolder.create(tmp_path, "a", {})
    for step in (3, 100, 20):
        (run.path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    run.prune(2)
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["step-100", "step-20"]
    run.prune(0)
    assert run.newest_checkpoint().name == "step-100"


def test_a_broken_record_is_an_error_but_does_not_hide_other_runs(tmp_path):
    RunFolder.create(tmp_path, "a", {})
    for content, says in (("[1]", "holds no object"), ("{", "not valid JSON")):
        (tmp_path / "a" / "run.json").write_text(content)
        os.utime(tmp_path / "a" / "run.json", (1, 1))
        with pytest.raises(DataError, match=says):
            RunFolder(tmp_path / "a").record()
    RunFolder.create(tmp_path, "b", {})
    assert RunFolder.newest(tmp_path).name == "b"


def test_provenance_says_versions_source_and_hardware():
    facts = provenance()
    assert {"python", "salma", "numpy", "torch"} <= set(facts["versions"])
    assert facts["hardware"]["cpus"] >= 1
    assert facts["git"] is None or set(facts["git"]) == {"commit", "dirty"}


def test_a_resumed_run_forgets_the_steps_it_makes_again(tmp_path):
    run = RunFolder.create(tmp_path, "a", {})
    run.forget_after(3)
    lines = [f'{{"step": {step}, "loss": 1.0}}\n' for step in (1, 2, 3, 4)]
    run.metrics_path.write_text("".join(lines) + '{"step": 5, "lo')
    run.forget_after(2)
    assert run.metrics_path.read_text() == "".join(lines[:2])
