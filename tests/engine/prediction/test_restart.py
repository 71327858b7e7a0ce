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
PRELOADED = [
    "cli",
    "data.readers.video_sets",
    "engine.prediction.benchmark",
    "engine.scoring.evaluator",
    "report.plots",
]


@pytest.fixture
def command(run_checkpoint, small_synthetic):
    """A model from scratch gives masks only where its answers are forced."""
    return [
        *("eval", "mevis", "--split", "train", "--data", str(small_synthetic / "mevis")),
        *("--checkpoint", str(run_checkpoint), "--fallback", "force-seg", "--save-logits"),
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


def kill_and_restart(start, folder: Path, whole: dict[str, bytes], longest: float) -> None:
    """Start and kill until that has happened `KILLS` times, then let it end."""
    moments, kills, states = random.Random(0), 0, set()
    while kills < KILLS:
        process, deadline = start(), time.monotonic() + moments.uniform(0, longest)
        while time.monotonic() < deadline and alive(process):
            time.sleep(0.002)
        if alive(process):
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
            ended(process)
            state = sum(1 for path in folder.glob("*/*/predictions/*.json"))
            longest *= 1.1 if state in states else 1  # on a machine that has become slower since it was measured
            states.add(state)
        else:  # so it begins anew
            assert ended(process) == 0 and contents(folder) == whole
            shutil.rmtree(folder)
    assert ended(start()) == 0
    assert contents(folder) == whole
    assert len(states) > 2, "it was killed at the same place again and again"


def alive(process) -> bool:
    return process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None


def ended(process) -> int:
    if isinstance(process, BaseProcess):
        process.join()
        return process.exitcode
    return process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_killed_twenty_times_it_ends_with_the_same_bytes(command, folder):
    context = multiprocessing.get_context("forkserver")
    # Imported once: the processes that are killed live for less time than their imports would take.
    context.set_forkserver_preload([f"salmacli.{name}" for name in PRELOADED])

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
    kill_and_restart(start, folder, whole, 0.4 * seconds)


@pytest.mark.slow
def test_killed_twenty_times_on_the_command_line(command, folder):
    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "salmacli", *command], stdout=subprocess.DEVNULL)

    begun = time.monotonic()
    assert ended(start()) == 0
    seconds, whole = time.monotonic() - begun, contents(folder)
    shutil.rmtree(folder)
    kill_and_restart(start, folder, whole, seconds)
