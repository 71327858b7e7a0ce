from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from salmacli import launch
from salmacli.errors import ConfigError, DataError, SalmaError, UsageError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def run(command: list[str], environment: dict[str, str]) -> int:
        made.append({"command": command, "env": environment})
        return 0

    monkeypatch.setattr(launch, "run_to_end", run)
    monkeypatch.delenv(launch.WORKER, raising=False)
    return made


def test_starts_torchrun_with_the_same_arguments(calls: list[dict[str, Any]]) -> None:
    launch.relaunch(4, ["train", "--cma", "--num-gpus", "4"])
    (call,) = calls
    assert call["command"] == [
        *(sys.executable, "-m", "salmacli.launch", "--standalone", "--nproc-per-node=4"),
        *("-m", "--", "salmacli", "train", "--cma", "--num-gpus", "4"),
    ]
    assert call["env"][launch.WORKER] == "1"
    assert int(call["env"]["OMP_NUM_THREADS"]) >= 1


def test_a_worker_starts_no_workers(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launch.WORKER, "1")
    launch.relaunch(4, ["train"])
    assert calls == []


def test_one_device_needs_no_other_process(calls: list[dict[str, Any]]) -> None:
    launch.relaunch(1, ["train"])
    assert calls == []


def test_less_than_one_is_refused(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match="--num-gpus is 0"):
        launch.relaunch(0, ["train"])
    assert calls == []


@pytest.mark.parametrize(
    ("status", "error"),
    [(1, SalmaError), (4, DataError), (3, ConfigError), (130, KeyboardInterrupt), (-2, KeyboardInterrupt)],
)
def test_failing_workers_fail_the_command(
    monkeypatch: pytest.MonkeyPatch, status: int, error: type[BaseException]
) -> None:
    monkeypatch.delenv(launch.WORKER, raising=False)
    monkeypatch.setattr(launch, "run_to_end", lambda *_: status)
    with pytest.raises(error):
        launch.relaunch(2, ["train"])


def test_the_exit_status_is_the_childs() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert launch.run_to_end([sys.executable, "-c", "raise SystemExit(7)"], os.environ) == 7
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child outlives a parent that is killed")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_child_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    """The child writes its number, and that it was told to end and not killed."""
    child = (
        "import os, pathlib, signal, sys, time\n"
        "def end(*_): pathlib.Path('told').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path('new').write_text(str(os.getpid())); os.rename('new', 'pid')\n"
        "time.sleep(60)\n"
    )
    repository = Path(launch.__file__).parents[1]
    call = f"run_to_end([sys.executable, '-c', {child!r}], os.environ)"
    code = f"import os, sys; from salmacli.launch import run_to_end; {call}"
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    _wait_for(tmp_path / "pid")
    parent.send_signal(number)
    assert parent.wait(20) == -number
    _wait_for(tmp_path / "told")


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} does not come"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="torchrun's store on Windows needs libuv")
def test_two_gloo_processes_meet(tmp_path: Path) -> None:
    package = tmp_path / "salmacli"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import sys, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "total = torch.tensor([dist.get_rank() + 1.0]); dist.all_reduce(total)\n"
        f"path = r'{tmp_path}' + f'/rank{{dist.get_rank()}}'\n"
        "open(path, 'w').write(f'{total.item()} {sys.argv[1:]}')\n"
        "dist.destroy_process_group()\n"
    )
    # A stand-in of the package's name, so that only the way in is tested and not what lies behind it.
    code = f"runpy.run_path(r'{launch.__file__}')['relaunch'](2, ['train', '--run', 'x'])"
    repository = str(Path(launch.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), repository])}
    environment.pop(launch.WORKER, None)
    helper = f"import runpy, sys; sys.path.insert(0, r'{repository}'); {code}"
    subprocess.run([sys.executable, "-c", helper], env=environment, cwd=tmp_path, check=True, timeout=120)
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["3.0 ['train', '--run', 'x']"] * 2
