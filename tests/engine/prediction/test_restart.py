"""`salma eval`, killed again and again: what it ends with is what it would have ended with."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from salmacli.cli import main

KILLS = 20
# Imported once: the processes that are killed live for less time than their imports would take.
PRELOADED = [
    *("pytest", "salmacli.cli", "salmacli.data.readers.video_sets", "salmacli.engine.prediction.benchmark"),
    *("salmacli.engine.scoring.evaluator", "salmacli.report.plots", "salmacli.report.progress"),
    *("salmacli.report.tables", "sam2.modeling.memory_attention", "sam2.modeling.memory_encoder"),
    *("sam2.modeling.backbones.image_encoder", "transformers.models.qwen2.modeling_qwen2"),
]


@pytest.fixture
def command(run_checkpoint, small_synthetic, tmp_path):
    """Six short videos; a model from scratch gives masks only where its answers are forced."""
    data = tmp_path / "data"
    shutil.copytree(small_synthetic / "mevis", data)
    for name, key in (("meta_expressions", "videos"), ("mask_dict", None)):
        path = data / "train" / f"{name}.json"
        content = json.loads(path.read_text())
        for video in content[key].values() if key else ():
            video["expressions"] = dict(list(video["expressions"].items())[:2])
            video["frames"] = video["frames"][:4]
        path.write_text(json.dumps(content if key else {number: masks[:4] for number, masks in content.items()}))
    return [
        *("eval", "mevis", "--split", "train", "--data", str(data)),
        *("--checkpoint", str(run_checkpoint), "--fallback", "force-seg", "--save-logits"),
        *("--set", "max_new_tokens=2"),
    ]


@pytest.fixture
def folder(run_checkpoint):
    return run_checkpoint / "eval"


def contents(folder: Path) -> dict[str, bytes]:
    """All files of an evaluation, without remains of kills and without the time."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    (name,) = (name for name in files if name.endswith("results.json"))
    results = json.loads(files[name])
    del results["created"]
    return {**files, name: json.dumps(results).encode()}


def kill_and_restart(start, folder: Path, whole: dict[str, bytes], shortest: float, longest: float) -> None:
    """Start and kill `KILLS` times and at several places, then let it end; a life lasts `shortest` to `longest` s."""
    moments, kills, states = random.Random(0), 0, set()
    while kills < KILLS or len(states) < 3:
        process, deadline = start(), time.monotonic() + moments.uniform(shortest, longest)
        while time.monotonic() < deadline and alive(process):
            time.sleep(0.002)
        if alive(process):
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
            ended(process)
            states.add(sum(1 for path in folder.glob("*/*/predictions/*.json")))
            longest *= 1.1 if len(states) < 3 else 1  # on a machine that has become slower since it was measured
        else:  # so it begins anew
            assert ended(process) == 0 and contents(folder) == whole
            shutil.rmtree(folder)
    assert ended(start()) == 0
    assert contents(folder) == whole


def alive(process) -> bool:
    return process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None


def ended(process) -> int:
    if isinstance(process, BaseProcess):
        process.join()
        return process.exitcode
    return process.wait()


@pytest.fixture
def context(tmp_path, monkeypatch):
    """Makes processes that have everything imported."""
    from multiprocessing.forkserver import _forkserver

    # Each process would look through all that was imported for garbage, and so copy it first.
    (tmp_path / "no_garbage_so_far.py").write_text("import gc\ngc.collect()\ngc.freeze()\n")
    monkeypatch.syspath_prepend(tmp_path)
    _forkserver._stop()  # one that another test has left has imported nothing
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "no_garbage_so_far"])
    yield context
    context.set_forkserver_preload(["__main__"])
    _forkserver._stop()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_killed_twenty_times_it_ends_with_the_same_bytes(command, folder, context):
    def start(target=main, *arguments) -> BaseProcess:
        process = context.Process(target=target, args=arguments or (command,))
        process.start()
        return process

    assert ended(start(int, 0)) == 0  # the imports are no part of what is measured next
    begun = time.monotonic()
    assert ended(start()) == 0
    seconds, whole = time.monotonic() - begun, contents(folder)
    assert any(len(data) > 1000 for name, data in whole.items() if name.endswith(".npz"))
    shutil.rmtree(folder)
    kill_and_restart(start, folder, whole, 0, seconds / 4)


@pytest.mark.slow
def test_killed_twenty_times_on_the_command_line(command, folder):
    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "salmacli", *command], stdout=subprocess.DEVNULL)

    begun = time.monotonic()
    assert ended(start()) == 0
    seconds, whole = time.monotonic() - begun, contents(folder)
    shutil.rmtree(folder)
    # Most of the time goes by with imports.
    kill_and_restart(start, folder, whole, seconds / 2, seconds)
