"""The same command, once per GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from salmacli.errors import ConfigError, DataError, SalmaError, UsageError

# torchrun sets LOCAL_RANK, but other launchers do not; only a variable of our own tells a worker from the one
# who starts workers, whoever launched it.
WORKER = "SALMA_WORKER"
_PATIENCE = 180  # seconds in which processes end that Ctrl-C has reached: a step and a checkpoint
_PR_SET_PDEATHSIG = 1
_KILLED = 64  # the exit code that says so


def relaunch(num_gpus: int, argv: Sequence[str]) -> None:
    """Run ``salma`` once per device and return when all have ended well.

    Call it after config and data are checked, or every worker says what is wrong with them.

    Args:
        num_gpus: Processes to start; 1 or fewer, or being such a process already, returns at once.
        argv: The arguments of this command, without the program's name.

    Raises:
        UsageError: ``num_gpus`` is below 1.
        SalmaError: A worker failed, of the kind that its exit code says; what went wrong stands above in its own words.
    """
    check_count(num_gpus)
    if num_gpus == 1 or is_worker():
        return
    command = [sys.executable, "-m", "salmacli.launch", "--standalone", f"--nproc-per-node={num_gpus}"]
    # The dashes keep torchrun from taking our --run for its --run-path.
    command += ["-m", "--", "salmacli", *argv]
    # Without this torchrun limits every worker to one thread, and says so in a warning.
    threads = max(1, (os.cpu_count() or 1) // num_gpus)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, WORKER: "1"}
    status = run_to_end(command, environment)
    if status in (130, -2):
        raise KeyboardInterrupt
    if status == _KILLED:
        raise SalmaError(f"one of {num_gpus} processes was killed", "what by stands above; memory may have run out")
    if status != 0:
        kind = {2: UsageError, 3: ConfigError, 4: DataError}.get(status, SalmaError)
        raise kind(f"one of {num_gpus} processes failed", "its own message stands above")


def check_count(num_gpus: int) -> None:
    """Raises UsageError where there is no process to start."""
    if num_gpus < 1:
        raise UsageError(f"--num-gpus is {num_gpus}", "give 1 or more")


def run_to_end(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a process that ends when this one is told to, and on Linux also when this one is killed.

    Args:
        command: The program and its arguments.
        environment: All of its variables.

    Returns:
        Its exit status, as ``subprocess`` has it.
    """
    terminated = False

    def terminate(*_: object) -> None:
        nonlocal terminated
        terminated = True
        child.terminate()

    # SIGTERM and not SIGKILL, upon which torchrun could not end its workers.
    child = subprocess.Popen(command, env=environment, preexec_fn=_end_with_parent())
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        status = child.wait()
    except KeyboardInterrupt:  # a terminal has told the child, too
        try:
            child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            child.terminate()
            child.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if terminated:
        signal.raise_signal(signal.SIGTERM)  # and end as one does that does not wait for others
    return status


def _end_with_parent() -> Callable[[], None] | None:
    """What a child does before it starts, so that it gets SIGTERM when its parent ends in whatever way."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended meanwhile
            os._exit(1)

    return prepare


def is_worker() -> bool:
    """Whether this process was started by ``relaunch``."""
    return os.environ.get(WORKER) == "1"


def _serve(argv: Sequence[str]) -> int:
    """Run torchrun; the exit code of the process that failed first, without the traceback of the one that watched."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, main

    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    # Older versions of torch give processes half a minute to save what they have done.
    patience = [f"--shutdown-timeout={_PATIENCE}"] if "--shutdown-timeout" in known else []
    try:
        main([*patience, *argv])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return int(failure.exitcode)
        print(f"salma: process {rank} was killed by {signal.Signals(-failure.exitcode).name}", file=sys.stderr)  # noqa: T201
        return _KILLED
    return 0


if __name__ == "__main__":
    sys.exit(_serve(sys.argv[1:]))
