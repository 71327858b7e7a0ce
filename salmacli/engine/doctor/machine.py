"""What this machine has: devices, memory, disk, packages."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

_PACKAGE = "salma"
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Devices:
    """What computes.

    Attributes:
        name: of the first device.
        count: GPUs, or 1 where there is none.
        free, total: bytes of the device that has least; for a CPU, of the machine.
        bf16: whether it multiplies matrices in bfloat16 itself.
        cpu: whether there is no GPU.
    """

    name: str
    count: int
    free: int
    total: int
    bf16: bool
    cpu: bool

    @classmethod
    def here(cls) -> Devices:
        """Those of this machine."""
        if not torch.cuda.is_available():
            free, total = _ram()
            return cls(f"CPU with {os.cpu_count()} cores", 1, free, total, bf16=False, cpu=True)
        count = torch.cuda.device_count()
        free, total = min(torch.cuda.mem_get_info(number) for number in range(count))
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return cls(torch.cuda.get_device_name(), count, free, total, bf16=bf16, cpu=False)


def free_disk(folder: Path) -> int:
    """Bytes that can still be written into a folder, which need not be there yet."""
    there = folder.resolve()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def wrong_versions() -> list[str]:
    """What is installed in a version outside the ranges that SALMA's package asks for, or missing.

    Raises:
        PackageNotFoundError: SALMA itself is not installed but runs from a folder.
    """
    about = metadata.metadata(_PACKAGE)
    python = platform.python_version()
    asked = SpecifierSet(about["Requires-Python"] or "")
    wrong = [] if asked.contains(python, prereleases=True) else [f"Python {python}, not {asked}"]
    for line in metadata.requires(_PACKAGE) or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        # A build of one's own, such as 2.6.0+cu124, is a version of the range.
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version}, not {wanted.specifier}")
    return wrong


def _ram() -> tuple[int, int]:
    """Bytes of memory that are free, and all."""
    if _MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free, total = (1024 * int(lines[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
        return free, total
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, total
