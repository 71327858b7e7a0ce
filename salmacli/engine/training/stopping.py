"""A request to stop: it is taken to heart between two steps, so that nothing is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Ctrl-C reaches every process of a terminal, and torchrun passes it on: what comes so soon is the same request.
_ECHO = 3.0  # seconds


class Stop:
    """Whether someone has asked to stop.

    Args:
        say: told once, when it is asked for.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say = say
        self.asked = False
        self._when = 0.0

    def ask(self) -> None:
        """Ask to stop after this step."""
        if not self.asked:
            self.say("stopping after this step; a second Ctrl-C stops at once and loses it")
        self.asked = True

    @contextmanager
    def on_signal(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask once; the second time they act as usual."""
        previous: dict[int, Any] = {}

        def handle(number: int, frame: FrameType | None) -> None:
            if not self.asked:
                self._when = time.monotonic()
                self.ask()
            elif time.monotonic() - self._when > _ECHO:
                signal.signal(number, previous[number])
                signal.raise_signal(number)

        try:
            for wanted in (signal.SIGINT, signal.SIGTERM):
                previous[wanted] = signal.signal(wanted, handle)
        except ValueError:  # not in the main thread: whoever runs us there handles signals
            pass
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
