"""`salma train`, killed again and again, also while it saves: its weights are those of a run that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from salmacli.checkpoints.load import load_trainer_state
from salmacli.cli import main

KILLS = 20
# Imported once: the processes that are killed live for less time than their imports would take.
PRELOADED = [
    *("pytest", "salmacli.cli", "salmacli.engine.training.trainer", "salmacli.data.readers.video_sets"),
    *("salmacli.report.plots", "salmacli.report.progress", "salmacli.report.tables", "torch._dynamo"),
    *("sam2.modeling.memory_attention", "sam2.modeling.memory_encoder", "sam2.modeling.backbones.image_encoder"),
    *("transformers.models.qwen2.modeling_qwen2", "transformers.models.internvl.modeling_internvl"),
]
SETTINGS = [
    "model.clip_frames=2", "model.sam2.image_size=64", "train.batch_size=2", "train.log_every=1",
    "train.save_every=2", "train.recipe=lora", "train.lora.rank=4", "train.lora.dropout=0.1", "train.ema=0.9",
    "data.expressions=2", "data.decoded_frames=1", "data.train=[{set: mevis}]", "losses.points=64", "data.workers=0",
]  # fmt: skip


def command(name: str) -> list[str]:
    if (Path("runs") / name / "run.json").exists():
        return ["train", "--resume", "--name", name]
    words = ["train", "--cma", "--steps", "30", "--name", name]
    for setting in SETTINGS:
        words += ["--set", setting]
    return words


@pytest.mark.slow
def test_twenty_kills_change_no_bit(tmp_path, monkeypatch, small_synthetic):
    monkeypatch.setenv("SALMA_SYNTHETIC", str(small_synthetic))
    monkeypatch.chdir(tmp_path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def start(name):
        process = context.Process(target=main, args=(command(name),))
        process.start()
        return process

    def finished(name):
        process = start(name)
        process.join()
        assert process.exitcode == 0

    finished("first")  # so that the next one has everything imported
    begun = time.monotonic()
    finished("whole")
    longest = (time.monotonic() - begun) * 0.7
    moments, kills, saving, resumed, run = random.Random(0), 0, 0, set(), Path("runs") / "killed"
    while kills < KILLS or not saving:
        process = start("killed")
        process.join(moments.uniform(0.1, longest))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            saving += any((run / "checkpoints").glob(".step-*"))
            resumed.add(max((path.name for path in (run / "checkpoints").glob("step-*")), default=None))
        else:  # so it begins anew
            check_equal("whole", "killed")
            shutil.rmtree(run)
    finished("killed")
    assert len(resumed) > 2, f"killed only after {resumed}"
    check_equal("whole", "killed")
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")], "remains of kills"


def check_equal(one: str, other: str) -> None:
    ends = [Path("runs") / name / "checkpoints" / "step-30" for name in (one, other)]
    weights, same = ((end / "model.safetensors").read_bytes() for end in ends)
    assert weights == same
    states = [load_trainer_state(end) for end in ends]
    assert flat(states[0]) == flat(states[1])
    lines, others = (figures(Path("runs") / name) for name in (one, other))
    assert lines == others and [line["step"] for line in lines] == list(range(1, 31))


def flat(state: object) -> object:
    """Tensors as bytes, so that states can be compared."""
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    if isinstance(state, dict):
        return {name: flat(value) for name, value in state.items()}
    return [flat(value) for value in state] if isinstance(state, (list, tuple)) else state


def figures(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]
