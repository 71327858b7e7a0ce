"""`salma train`, killed again and again, also while it saves: its weights are those of a run that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

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

    begun = time.monotonic()
    whole = start("whole")
    whole.join()
    assert whole.exitcode == 0
    longest = (time.monotonic() - begun) / 4
    moments, kills, resumed = random.Random(0), 0, set()
    run, lives = Path("runs") / "killed", 0
    while kills < KILLS:
        lives += 1
        process = start("killed")
        process.join(moments.uniform(0.1, longest))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            resumed.add(sum(1 for _ in (run / "checkpoints").glob("step-*")) and newest(run).name)
        elif kills < KILLS:  # it got to the end: again from the first checkpoint that is left
            assert process.exitcode == 0
            break
    last = start("killed")
    last.join()
    assert last.exitcode == 0
    assert kills >= KILLS // 2 and len(resumed) >= 3, f"killed {kills} times, after {resumed}"
    ends = [Path("runs") / name / "checkpoints" / "step-30" for name in ("whole", "killed")]
    one, other = ((end / "model.safetensors").read_bytes() for end in ends)
    assert one == other
    one, other = (load_trainer_state(end) for end in ends)
    assert str(one) == str(other)
    one, other = (figures(Path("runs") / name) for name in ("whole", "killed"))
    assert one == other and [line["step"] for line in one] == list(range(1, 31))


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def figures(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]
