"""The folder of one run, the contract between commands: record, log, checkpoints, evaluations."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import salmacli
from salmacli.config.files import read_json, safe_name, write_atomic, write_json
from salmacli.errors import DataError

RUNS = Path("runs")
LIBRARIES = ("torch", "transformers", "sam2", "accelerate", "peft", "numpy")

_STEP = re.compile(r"step-(\d+)")


class RunFolder:
    """One run on disk.

    Args:
        path: The folder that holds ``run.json``.

    Raises:
        DataError: There is no run in that folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / "run.json").is_file():
            raise DataError(f"{self.path} is not a run: run.json is missing", "name a folder that `salma train` made")

    @classmethod
    def create(cls, root: str | os.PathLike[str], name: str, record: Mapping[str, Any]) -> RunFolder:
        """Make a new run.

        Args:
            root: Folder of all runs.
            name: One path component.
            record: What ``run.json`` is to hold; ``created`` is added.

        Raises:
            DataError: The name is no plain name, or a run has it already.
        """
        path = Path(root) / safe_name(name, "the run's name")
        if (path / "run.json").exists() and not cls(path)._never_began():
            raise DataError(f"a run {path} exists already", "go on with --resume, or give another --name")
        write_json(path / "run.json", {"created": _now(), **record})
        return cls(path)

    @classmethod
    def met(cls, root: str | os.PathLike[str], name: str, patience: float = 600) -> RunFolder:
        """The run that the first process of this launch makes.

        Args:
            root, name: As of `create`.
            patience: Seconds after which there will be none.

        Raises:
            DataError: The name is no plain name, or no run came.
        """
        path = Path(root) / safe_name(name, "the run's name")
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if (path / "run.json").is_file() and (run := cls(path)).record().get("launch") == launch():
                return run
            time.sleep(0.2)
        raise DataError(f"the first process has not made the run {path}", "see its own message")

    @classmethod
    def newest(cls, root: str | os.PathLike[str] = RUNS) -> RunFolder:
        """The run created last.

        Raises:
            DataError: There is no run below ``root``.
        """
        runs = cls.all(root)
        if not runs:
            raise DataError(f"there is no run in {Path(root)}", "make one: salma train --cma --topk 2")
        return max(runs, key=lambda run: (run._created(), run.name))

    @classmethod
    def choose(cls, run: str | os.PathLike[str] | None, root: str | os.PathLike[str] = RUNS) -> RunFolder:
        """The run a user names by folder, or by name below ``root``; the newest with a checkpoint where none is named.

        Raises:
            DataError: There is no such run.
        """
        if run is None:
            runs = [one for one in cls.all(root) if one.checkpoints()]
            return max(runs, key=lambda one: (one._created(), one.name)) if runs else cls.newest(root)
        below = Path(root) / run
        return cls(below if not Path(run).exists() and below.is_dir() else run)

    @classmethod
    def all(cls, root: str | os.PathLike[str] = RUNS) -> list[RunFolder]:
        """Every run below ``root``, by name; none where the folder is missing."""
        return [cls(record.parent) for record in sorted(Path(root).glob("*/run.json"))]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.resolve().name

    @property
    def metrics_path(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    def record(self) -> dict[str, Any]:
        """What ``run.json`` holds.

        Raises:
            DataError: It is broken.
        """
        record = read_json(self.path / "run.json")
        if not isinstance(record, dict):
            raise DataError(f"{self.path / 'run.json'} holds no object", "train the run again")
        return record

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, by step. Those being written have another name until they are whole."""
        found = [(_STEP.fullmatch(path.name), path) for path in (self.path / "checkpoints").glob("step-*")]
        whole = [(int(match[1]), path) for match, path in found if match and path.is_dir()]
        return [path for _, path in sorted(whole)]

    def newest_checkpoint(self) -> Path:
        """The checkpoint of the highest step.

        Raises:
            DataError: The run has none yet.
        """
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise DataError(f"run {self.path} has no checkpoint yet", "train on: salma train --resume")
        return checkpoints[-1]

    def newest_step(self) -> int:
        """Step of the newest checkpoint; raises as :meth:`newest_checkpoint` does."""
        return int(self.newest_checkpoint().name.removeprefix("step-"))

    def prune(self, keep: int, best: int | None = None) -> None:
        """Remove all but the newest ``keep`` checkpoints, and that of step ``best``."""
        for old in self.checkpoints()[: -max(keep, 1)]:
            if old.name == f"step-{best}":
                continue
            # Renamed first: a checkpoint half removed must not look whole.
            going = old.with_name(f".{old.name}.removed")
            old.rename(going)
            shutil.rmtree(going)

    def forget_after(self, step: int) -> None:
        """Drop the logged steps after `step`, which a run that goes on from there makes again, and remains of kills."""
        for remains in (self.path / "checkpoints").glob(".step-*"):
            shutil.rmtree(remains, ignore_errors=True)
        if not self.metrics_path.exists():
            return
        lines = self.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A line that was cut off by a kill is later than the checkpoint, too.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_atomic(self.metrics_path, "".join(kept))

    def eval_folder(self, benchmark: str, how: str) -> Path:
        """Where predictions and results of one benchmark, predicted one way, lie; see `settings.label`."""
        where = f"evaluation of {self.path}"
        return self.path / "eval" / safe_name(benchmark, where) / safe_name(how, where)

    def _never_began(self) -> bool:
        """Whether its start failed, so that there is nothing in it and nobody at it."""
        if self.metrics_path.exists() or self.checkpoints():
            return False
        try:
            with self.locked():
                return True
        except DataError:
            return False

    @contextmanager
    def locked(self, wanted: bool = True) -> Iterator[None]:
        """Keep others from training in this run.

        Args:
            wanted: False for processes that train together with the one that holds it.

        Raises:
            DataError: Somebody trains in it.
        """
        if not wanted:
            yield
            return
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise DataError(f"another process trains in {self.path}", "wait for it, or stop it") from None
        try:
            yield
        finally:
            lock.release()

    def _created(self) -> float:
        """Seconds; the file's own time where the record does not say."""
        try:
            created = datetime.fromisoformat(str(self.record().get("created")))
            return created.timestamp()
        except (ValueError, DataError):
            return (self.path / "run.json").stat().st_mtime


def launch() -> list[str] | None:
    """What tells this start of several processes from others; None for a process that runs alone."""
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return [os.environ.get(name, "") for name in names] if "MASTER_PORT" in os.environ else None


def provenance() -> dict[str, Any]:
    """Versions, state of the source and hardware, for ``run.json``."""
    return {
        "versions": {"python": platform.python_version(), "salma": salmacli.__version__, **_versions()},
        "git": _git(Path(salmacli.__file__).resolve().parent),
        "hardware": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "gpus": _gpus(),
        },
    }


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None for an installed package without a repository."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An installed copy may lie inside some other project's repository.
        if not ask("ls-files", "__init__.py"):
            return None
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None


def _gpus() -> list[str]:
    """Names of the CUDA devices, if whoever calls has loaded torch; this module must not."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")
