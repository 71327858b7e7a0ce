"""What can be wrong with one predicted mask: named, counted, and refused unless the caller allows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from salmacli.config.files import legible
from salmacli.errors import DataError

KINDS: Mapping[str, str] = {
    "video": "video missing",
    "expression": "expression missing",
    "frame": "frame missing",
    "size": "of another size",
    "mode": "of another PNG mode",
    "unreadable": "unreadable PNG",
    "rle": "RLE that does not fit",
}
NAMED = 20  # in results
_NAMED = 3  # in a message


@dataclass(frozen=True)
class Problem:
    """A place where predictions are missing or do not fit.

    Attributes:
        kind: A key of ``KINDS``.
        where: ``video``, ``video/expression`` or ``video/expression/frame``, as far as the fault reaches.
        detail: What exactly, where the kind does not say it all.
    """

    kind: str
    where: str
    detail: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no kind of problem {self.kind!r}")

    def __str__(self) -> str:
        return f"{self.where} ({self.detail or KINDS[self.kind]})"


class ProblemError(DataError):
    """A mask cannot be given; whoever scores decides what that means."""

    def __init__(self, kind: str, where: str, detail: str = "") -> None:
        self.problem = Problem(kind, where, detail)
        super().__init__(str(self.problem))


def per_kind(problems: Iterable[Problem]) -> dict[str, int]:
    """How many masks have each kind of problem, in the order of ``KINDS``.

    Args:
        problems: One per mask, or a ``Counter`` of them.
    """
    found: Counter[str] = Counter()
    for problem, masks in Counter(problems).items():
        found[problem.kind] += masks
    return {kind: found[kind] for kind in KINDS if found[kind]}


def named(problems: Iterable[Problem], most: int = NAMED) -> list[dict[str, str | int]]:
    """The first problems as results state them, each with the number of masks it reaches."""
    return [
        {"kind": problem.kind, "where": legible(problem.where), "detail": legible(problem.detail), "masks": masks}
        for problem, masks in list(Counter(problems).items())[:most]
    ]


def refuse(
    problems: Iterable[Problem],
    total: int,
    source: Path,
    mend: str = "predict again, or score with --missing zero or --missing drop",
) -> NoReturn:
    """Refuse incomplete predictions.

    Args:
        problems: One per mask, or a ``Counter`` of them.
        total: How many masks were asked for.
        source: Where the predictions are.
        mend: What to do about it.

    Raises:
        DataError: Always; it names the total, the number per kind, and the first three.
    """
    found = Counter(problems)
    kinds = ", ".join(f"{number} {KINDS[kind]}" for kind, number in per_kind(found).items())
    first = ", ".join(str(problem) for problem in list(found)[:_NAMED])
    raise DataError(
        f"{source}: {sum(found.values())} of {total} predicted masks are missing or do not fit: {kinds};"
        f" the first: {first}",
        mend,
    )
