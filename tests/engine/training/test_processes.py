"""Several processes train as one does; what happens to one of them ends the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from salmacli.checkpoints.load import load_checkpoint

SMALL = [
    "model.clip_frames=2", "model.sam2.image_size=64", "train.log_every=1", "train.warmup_fraction=0.5",
    "data.expressions=2", "data.decoded_frames=1", "data.train=[{set: mevis}]", "losses.points=64",
    "losses.tmc_rivals=batch", "data.workers=0",
]  # fmt: skip


def command(*options, steps=4):
    words = ["train", "--cma", "--topk", "2", "--steps", str(steps), *options]
    for setting in SMALL:
        words += ["--set", setting]
    return words


def environment(tmp_path, synthetic):
    own = {**os.environ, "SALMA_SYNTHETIC": str(synthetic), "OMP_NUM_THREADS": "1"}
    return {name: value for name, value in own.items() if name != "SALMA_WORKER"}


@pytest.fixture
def salma(tmp_path, small_synthetic):
    def run(words, launcher=("-m", "salmacli"), **more):
        return subprocess.run(
            [sys.executable, *launcher, *words],
            cwd=tmp_path,
            env={**environment(tmp_path, small_synthetic), **more},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def torchrun(processes):
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "--", "salmacli")


def figures(tmp_path, name):
    lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.slow
def test_two_processes_are_one_with_the_doubled_batch(tmp_path, salma):
    """For 20 steps, contrast between the masks of both included."""
    one = salma(command("--name", "one", "--set", "train.batch_size=4", steps=20))
    two = salma(command("--name", "two", "--set", "train.batch_size=2", "--num-gpus", "2", steps=20))
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert len(figures(tmp_path, "one")) == 20
    for single, double in zip(figures(tmp_path, "one"), figures(tmp_path, "two"), strict=True):
        # Steps in which the gradient is a hundred times its usual size magnify what rounding differs in.
        assert single == pytest.approx(double, rel=1e-4)
        assert single["loss"] == pytest.approx(double["loss"], rel=2e-6)
    assert {path.name for path in (tmp_path / "runs" / "two" / "logs").iterdir()} == {"rank0.log", "rank1.log"}


@pytest.mark.slow
def test_an_external_launcher_makes_one_run_that_goes_on_as_one_process(tmp_path, salma):
    unnamed = salma(command(), torchrun(2))
    assert unnamed.returncode != 0 and "give it a --name" in unnamed.stderr
    first = salma(command("--name", "two", "--set", "train.save_every=2"), torchrun(2))
    assert first.returncode == 0, first.stderr
    for step in (4,):
        folder = tmp_path / "runs" / "two" / "checkpoints" / f"step-{step}"
        folder.rename(tmp_path / "whole")
    again = salma(["train", "--resume", "--name", "two"], torchrun(2))
    assert again.returncode == 0, again.stderr
    whole = load_checkpoint(tmp_path / "whole")[0].state_dict()
    resumed = load_checkpoint(tmp_path / "runs" / "two" / "checkpoints" / "step-4")[0].state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    # Fewer processes go on, too.
    (tmp_path / "runs" / "two" / "checkpoints" / "step-4").rename(tmp_path / "resumed")
    assert salma(["train", "--resume", "--name", "two"]).returncode == 0


# One process reads nothing but broken frames, so that it has no mask in any batch.
_BLIND = """
import os, sys
from salmacli.data.training.clips import BadClip
from salmacli.data.training.mix import TrainingMix
real = TrainingMix.__getitem__
if os.environ.get("RANK") == "1":
    TrainingMix.__getitem__ = lambda mix, key: BadClip("mevis/blind", "broken")
from salmacli.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_process_without_a_mask_does_not_hold_up_the_other(tmp_path, salma):
    (tmp_path / "blind.py").write_text(_BLIND)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "blind.py")
    ended = salma(command("--name", "blind", "--set", "data.max_bad_fraction=1"), launcher)
    assert ended.returncode == 0, ended.stderr
    assert figures(tmp_path, "blind")[-1]["bad"] == 4 * 6
    assert all(line["bce"] > 0 for line in figures(tmp_path, "blind"))


@pytest.mark.slow
def test_too_many_bad_samples_in_one_process_end_all(tmp_path, salma):
    (tmp_path / "blind.py").write_text(_BLIND)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "blind.py")
    ended = salma(command("--name", "blind", steps=50), launcher)
    assert ended.returncode != 0 and "samples could not be read, the last is mevis/blind: broken" in ended.stderr


def begun(tmp_path, synthetic, name):
    """Two processes that train, in a session of their own, and their log, which has begun."""
    process = subprocess.Popen(
        [sys.executable, "-m", "salmacli", *command("--name", name, "--num-gpus", "2", steps=100_000)],
        cwd=tmp_path,
        env=environment(tmp_path, synthetic),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "runs" / name / "metrics.jsonl"
    while not log.exists():
        assert process.poll() is None
        time.sleep(0.2)
    return process, log


@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_its_message(tmp_path, small_synthetic):
    process, _ = begun(tmp_path, small_synthetic, "killed")
    workers = subprocess.run(["pgrep", "-f", "salmacli train --resume --name killed"], capture_output=True, text=True)
    ours = [int(pid) for pid in workers.stdout.split() if _rank_of(int(pid)) == "1"]
    os.kill(ours[0], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "salma: process 1 was killed by SIGKILL" in said
    assert said.splitlines()[-1].startswith("salma: error: one of 2 processes was killed")


def _rank_of(pid):
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((one.split(b"=")[1].decode() for one in variables if one.startswith(b"RANK=")), None)


@pytest.mark.slow
def test_ctrl_c_saves_what_several_processes_have_done(tmp_path, small_synthetic):
    process, log = begun(tmp_path, small_synthetic, "stopped")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=90)
    assert process.returncode == 130, said
    (checkpoint,) = (tmp_path / "runs" / "stopped" / "checkpoints").iterdir()
    assert len(log.read_text().splitlines()) == int(checkpoint.name.removeprefix("step-"))
