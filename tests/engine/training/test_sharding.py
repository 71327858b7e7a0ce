"""FSDP2 and DeepSpeed on two CPU processes: the same figures as one process, whole checkpoints, exact resume.

Accelerate shards on GPUs only. PyTorch and DeepSpeed themselves do on CPUs, too, so the processes here tell it that
it may; all else is what `salma train --set train.sharding=…` runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from salmacli.checkpoints.load import load_checkpoint

SETTINGS = [
    "model.clip_frames=2", "model.sam2.image_size=64", "train.log_every=1", "train.save_every=2",
    "data.expressions=2", "data.decoded_frames=1", "data.train=[{set: mevis}]", "losses.points=64", "data.workers=0",
    "losses.tmc_rivals=batch",
]  # fmt: skip

_ALLOWED = """
import os, sys
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from salmacli.engine.training import devices, trainer
from salmacli.cli import main

def on_cpus(train, folder):
    if train.sharding == "fsdp2":
        plugin = devices._fsdp2()
        accelerator = Accelerator(cpu=True, project_dir=folder)
        AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
        return accelerator
    import deepspeed
    plugin = devices._deepspeed(train)
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    accelerator = Accelerator(deepspeed_plugin=plugin, project_dir=folder)
    for state in (PartialState, AcceleratorState):
        state._shared_state.update(num_processes=2, process_index=dist.get_rank(), local_process_index=dist.get_rank())
    devices._keep_from_transformers()
    return accelerator

trainer.accelerator_of = on_cpus
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["fsdp2", "zero2", "zero3"])
@pytest.mark.parametrize("recipe", ["full", "lora"])
def test_shared_out_it_trains_saves_and_goes_on_as_one(tmp_path, small_synthetic, sharding, recipe):
    if sharding != "fsdp2" and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    (tmp_path / "allowed.py").write_text(_ALLOWED)
    environment = {**os.environ, "SALMA_SYNTHETIC": str(small_synthetic), "OMP_NUM_THREADS": "1"}
    environment |= {"DS_ACCELERATOR": "cpu"}

    def run(*words):
        ended = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )
        assert ended.returncode == 0, ended.stderr[-3000:]

    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "allowed.py")
    settings = [*SETTINGS, f"train.recipe={recipe}", "train.lora.rank=4", "train.lora.dropout=0"]
    words = ["train", "--cma", "--steps", "4", *(word for one in settings for word in ("--set", one))]
    # Two processes, two passes each: that DeepSpeed makes one step of them is worth a test.
    run("-m", "salmacli", *words, "--name", "one", "--set", "train.batch_size=2", "--set", "train.accumulate=2")
    more = ["train.batch_size=1", "train.accumulate=2", f"train.sharding={sharding}"]
    run(*two, *words, "--name", "two", *(word for one in more for word in ("--set", one)))
    for single, shared in zip(figures(tmp_path, "one"), figures(tmp_path, "two"), strict=True):
        assert single == pytest.approx(shared, rel=1e-4)
    again = tmp_path / "runs" / "again"
    shutil.copytree(tmp_path / "runs" / "two", again)
    shutil.rmtree(again / "checkpoints" / "step-4")
    run(*two, "train", "--resume", "--name", "again")
    for before, after in zip(figures(tmp_path, "two"), figures(tmp_path, "again"), strict=True):
        assert before == pytest.approx(after, rel=1e-5)
    whole, resumed = (load_checkpoint(tmp_path / "runs" / n / "checkpoints" / "step-4")[0] for n in ("two", "again"))
    if sharding != "zero3":  # which adds up in another order after a start
        assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


def figures(tmp_path, name):
    lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
