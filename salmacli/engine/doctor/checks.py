"""What would stop a command later on: what was looked at, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Literal, TypeAlias, TypeVar

from salmacli.engine.doctor.machine import Devices, wrong_versions
from salmacli.engine.estimate import Memory
from salmacli.engine.training.optimizer import PartRow
from salmacli.errors import SalmaError

GIB = 2**30
OVERHEAD = GIB  # of a process beside its tensors: libraries, CUDA's context, what an allocator holds back
_NARROW = 0.9  # share of the memory above which it may run out all the same

Made = TypeVar("Made")
State: TypeAlias = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        state: whether it is as it must be.
        found: what was found.
        mend: what to do about it; empty where nothing is to be done.
        exit_code: of a fault: 3 for settings, 4 for data and checkpoints, else 1.
    """

    name: str
    state: State
    found: str
    mend: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Report:
    """All of them.

    Attributes:
        checks: in the order in which they were made.
        parts: of a model to train, and what trains; empty where no model could be made.
        memory: what it takes, a training with usual samples; None where that is not known.
    """

    checks: tuple[Check, ...]
    parts: tuple[PartRow, ...] = ()
    memory: Memory | None = None

    @property
    def exit_code(self) -> int:
        """0 without a fault, else that of the first one."""
        return next((check.exit_code for check in self.checks if check.state == "fault"), 0)


def fault(name: str, error: SalmaError) -> Check:
    """What an error says."""
    mend = error.mend or ""
    return Check(name, "fault", str(error).removesuffix(f"; {mend}"), mend, error.exit_code)


def examined(name: str, look: Callable[[], Check]) -> Check:
    """What a look says, be it by an error."""
    return made(name, lambda: (look(), None))[0]


def made(name: str, look: Callable[[], tuple[Check, Made]]) -> tuple[Check, Made | None]:
    """What a look says, and what it has made on the way, unless there was an error."""
    try:
        return look()
    except SalmaError as error:
        return fault(name, error), None


def versions() -> Check:
    """Whether all packages are in the ranges that SALMA asks for."""
    try:
        wrong = wrong_versions()
    except metadata.PackageNotFoundError:
        return Check("versions", "warning", "SALMA is not installed, so its packages are not checked", "pip install .")
    if wrong:
        return Check("versions", "fault", "; ".join(wrong), "install SALMA again, in an environment of its own", 1)
    return Check("versions", "ok", "all packages are in the ranges that SALMA is tested with")


def devices(here: Devices, wanted: int, precision: str) -> Check:
    """Whether there are as many as processes are wanted, and compute as they are to."""
    found = f"{here.count} × {here.name}, {size(here.total)}" if not here.cpu else f"{here.name}, {size(here.total)}"
    if wanted > here.count and not here.cpu:
        return Check("devices", "fault", f"{found}; {wanted} are asked for", "give a smaller --num-gpus", 1)
    if precision == "bf16" and not here.bf16:
        return Check("devices", "warning", f"{found}: bfloat16 is slow on it", "leave the precision to auto")
    return Check("devices", "ok", f"{found}; bfloat16: {'yes' if here.bf16 else 'no'}")


def memory(peak: int, here: Devices, smaller: str) -> Check:
    """Whether so many bytes fit on a device; `smaller` says what takes less."""
    need = peak + OVERHEAD
    found = f"about {size(need)}; {size(here.free)} of {size(here.total)} are free"
    if need > here.total:
        return Check("memory", "fault", found, f"try {smaller}", 1)
    if need > _NARROW * here.free:
        return Check("memory", "warning", found, f"if it runs out: {smaller}")
    return Check("memory", "ok", found)


def size(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
