"""Progress that people see: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from salmacli.engine.progress import PartRow
from salmacli.report.console import say
from salmacli.report.parts import parts_table

LINE_EVERY = 10.0  # seconds between plain lines, unless 5 % come first
LINE_SHARE = 0.05
LINE_PAUSE = 1.0  # seconds: even 5 % steps do not come faster


class TerminalProgress:
    """Implements ``engine.progress.Progress`` on stderr.

    Args:
        live: A moving bar; by default where stderr is a terminal.
    """

    def __init__(self, live: bool | None = None) -> None:
        self._live = sys.stderr.isatty() if live is None else live
        self._bar: Progress | None = None
        self._bar_task = TaskID(0)
        self._task, self._total, self._done, self._first = "", 0, 0, 0
        self._begin = self._told_at = 0.0
        self._told = 0
        self._figures: Mapping[str, float] = {}

    def start(self, task: str, total: int, done: int = 0) -> None:
        """A task of ``total`` units begins; the rate counts from ``done`` on."""
        self.finish()
        self._task, self._total, self._done, self._first, self._told = task, total, done, done, done
        self._begin = self._told_at = time.monotonic()
        self._figures = {}
        if self._live:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                console=Console(file=sys.stderr),
            )
            self._bar_task = self._bar.add_task(task, total=total, completed=done, figures="")
            self._bar.start()

    def advance(self, n: int = 1, **figures: float) -> None:
        """``n`` more units are done."""
        self._done += n
        if figures:
            self._figures = figures
        if self._bar is not None:
            self._bar.update(self._bar_task, completed=self._done, figures=self._status())
            return
        now = time.monotonic()
        waited, moved = now - self._told_at, self._done - self._told
        if waited >= LINE_EVERY or (waited >= LINE_PAUSE and moved >= LINE_SHARE * self._total):
            self._tell(now)

    def say(self, message: str) -> None:
        """One line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            say(message)

    def parts(self, rows: Sequence[PartRow]) -> None:
        """What will train, as a table."""
        (self._bar.console if self._bar is not None else Console(file=sys.stderr)).print(parts_table(rows))

    def finish(self) -> None:
        """The task is over: the bar stays as it stands, plain output closes with a last line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._done > self._told:
            self._tell(time.monotonic())
        self._told = self._done

    def _tell(self, now: float) -> None:
        say(f"{self._task}: {self._done}/{self._total} {self._status()}".rstrip())
        self._told, self._told_at = self._done, now

    def _status(self) -> str:
        parts = [f"{name} {value:.4g}" for name, value in self._figures.items()]
        spent, made = time.monotonic() - self._begin, self._done - self._first
        if made > 0 and spent > 0:
            rate = made / spent
            parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
            if self._done < self._total:
                parts.append(f"ETA {_clock((self._total - self._done) / rate)}")
            else:
                parts.append(f"in {_clock(spent)}")
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
