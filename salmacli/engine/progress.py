"""How long work reports that it moves on, without knowing who listens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class PartRow:
    """What a training does with one part of the model.

    Attributes:
        part: its name.
        parameters: numbers in it.
        trained: how many of them train.
        learning_rates: the lowest and the highest peak among them; None where nothing trains.
    """

    part: str
    parameters: int
    trained: int
    learning_rates: tuple[float, float] | None


class Progress(Protocol):
    """Listener of one task at a time: ``start``, any number of ``advance``, ``finish``."""

    def start(self, task: str, total: int, done: int = 0) -> None:
        """A task of ``total`` units begins, ``done`` of which an earlier run has finished."""

    def advance(self, n: int = 1, **figures: float) -> None:
        """``n`` more units are done; ``figures`` are shown beside them, e.g. ``loss=0.31``."""

    def say(self, message: str) -> None:
        """One line for the person who waits."""

    def parts(self, rows: Sequence[PartRow]) -> None:
        """What will train, before it does."""

    def finish(self) -> None:
        """The task is over, complete or not."""


class Silent:
    """A listener that shows nothing."""

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Ignore the beginning."""

    def advance(self, n: int = 1, **figures: float) -> None:
        """Ignore the step."""

    def say(self, message: str) -> None:
        """Ignore the message."""

    def parts(self, rows: Sequence[PartRow]) -> None:
        """Ignore the parts."""

    def finish(self) -> None:
        """Ignore the end."""
