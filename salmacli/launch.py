"""The same command, once per GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from salmacli.errors import SalmaError, UsageError

# torchrun sets LOCAL_RANK, but other launchers do not; only a variable of our own tells a worker from the one
# who starts workers, whoever launched it.
WORKER = "SALMA_WORKER"


def relaunch(num_gpus: int, argv: Sequence[str]) -> None:
    """Run ``salma`` once per device and return when all have ended well.

    Call it after config and data are checked: a worker's exit code is lost.

    Args:
        num_gpus: Processes to start; 1 or fewer, or being such a process already, returns at once.
        argv: The arguments of this command, without the program's name.

    Raises:
        UsageError: ``num_gpus`` is below 1.
        SalmaError: A worker failed; what went wrong stands above in its own words.
    """
    if num_gpus < 1:
        raise UsageError(f"--num-gpus is {num_gpus}", "give 1 or more")
    if num_gpus == 1 or is_worker():
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_gpus}"]
    # The dashes keep torchrun from taking our --run for its --run-path.
    command += ["-m", "--", "salmacli", *argv]
    # Without this torchrun limits every worker to one thread, and says so in a warning.
    threads = max(1, (os.cpu_count() or 1) // num_gpus)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, WORKER: "1"}
    status = subprocess.run(command, env=environment, check=False).returncode
    if status in (130, -2):
        raise KeyboardInterrupt
    if status != 0:
        raise SalmaError(f"one of {num_gpus} processes failed", "its own message stands above")


def is_worker() -> bool:
    """Whether this process was started by ``relaunch``."""
    return os.environ.get(WORKER) == "1"
