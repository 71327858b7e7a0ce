"""What a whole process takes, and on what machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Runs a command in a process that is small itself, because a child begins with the peak memory of its parent.
MEASURE = """
import json, os, sys, time
out, cores, *command = sys.argv[1:]
if cores:
    os.sched_setaffinity(0, map(int, cores.split(",")))
begin = time.perf_counter()
pid = os.posix_spawnp(command[0], command, os.environ)
_, status, used = os.wait4(pid, 0)
measured = {
    "wall_s": round(time.perf_counter() - begin, 2),
    "cpu_s": round(used.ru_utime + used.ru_stime, 2),
    "peak_mib": round(used.ru_maxrss / 1024),
}
with open(out, "w") as file:
    json.dump(measured, file)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measure(command: list[str], where: Path, scratch: Path, threads: int) -> tuple[dict[str, float], str]:
    """Run a command on the first ``threads`` cores.

    Args:
        command: The program and its arguments.
        where: Its working folder.
        scratch: A folder for the measurement and, below ``numba``, for what Numba compiles.
        threads: Number of cores; libraries are told the same number.

    Returns:
        wall_s, cpu_s and peak_mib, each with that of processes which the command started and waited for (peak: of
        the largest), and what it printed.
    """
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), str(threads)),
        "NUMBA_CACHE_DIR": str(scratch / "numba"),
        "PYTHONWARNINGS": "ignore",
    }
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads])) if hasattr(os, "sched_getaffinity") else ""
    out = scratch / "measured.json"
    ended = subprocess.run(
        [sys.executable, "-S", "-c", MEASURE, str(out), cores, *command],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return json.loads(out.read_text()), ended.stdout


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = ("numpy", "numba", "PIL", "cv2", "skimage")
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: import_module(name).__version__ for name in packages if find_spec(name)},
    }
