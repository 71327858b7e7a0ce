"""What would cost a night if nobody looked: parts that do not learn, losses that are no numbers, unreadable samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from salmacli.errors import DataError, SalmaError

Parts = Mapping[str, Sequence[Parameter]]
Sum = Callable[[Tensor], Tensor]  # over all processes

MOVED_AFTER = 5  # steps
_ENOUGH = 1000  # samples
SAME_ROUNDS = 3


def silent_parts(parts: Parts, over_all: Sum) -> list[str]:
    """Names of the parts that have no finite, non-zero gradient.

    Args:
        parts: parameters by part; a shard of each in this process.
        over_all: adds a tensor up over the processes.
    """
    found = torch.tensor([[*_signs(parameters)] for parameters in parts.values()], dtype=torch.float64)
    some, broken = over_all(found).unbind(1)
    return [name for name, alive, bad in zip(parts, some, broken, strict=True) if not alive or bad]


def _signs(parameters: Sequence[Parameter]) -> tuple[float, float]:
    """Whether some gradient is not zero, and whether some is not finite."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    some = any(bool(gradient.count_nonzero()) for gradient in gradients)
    broken = any(not bool(gradient.isfinite().all()) for gradient in gradients)
    return float(some), float(broken)


def refuse_silent(silent: Sequence[str]) -> None:
    """Raises SalmaError where there are parts without a gradient."""
    if silent:
        raise SalmaError(
            f"these parts are meant to train but get no finite, non-zero gradient: {', '.join(silent)}",
            "check the weights of the losses and what is frozen",
        )


class Movement:
    """Whether every part moves, not only gets a gradient: its rate may be 0, or its type too coarse.

    Args:
        parts: parameters by part.
        over_all: as of `silent_parts`.
    """

    def __init__(self, parts: Parts, over_all: Sum) -> None:
        self.parts, self.over_all = parts, over_all
        self.before = self._sums()

    def check(self, step: int) -> None:
        """Compare with the beginning.

        Raises:
            SalmaError: a part is what it was, in every number.
        """
        moved = [
            float(any(was != now for was, now in zip(old, new, strict=True)))
            for old, new in zip(self.before, self._sums(), strict=True)
        ]
        some = self.over_all(torch.tensor(moved, dtype=torch.float64))
        still = [name for name, value in zip(self.parts, some, strict=True) if not value]
        if still:
            raise SalmaError(
                f"after step {step} these parts are meant to train but have not moved: {', '.join(still)}",
                "check train.learning_rate and the type of their weights",
            )

    def _sums(self) -> list[list[float]]:
        """A number per parameter that any change of it changes."""
        sums = [[local(p.detach()).sum(dtype=torch.float64) for p in parameters] for parameters in self.parts.values()]
        return [torch.stack(part).tolist() if part else [] for part in sums]


def refuse_not_finite(values: Mapping[str, float], step: int, samples: Callable[[], Sequence[str]]) -> None:
    """Stop before a loss that is no number reaches the weights.

    Args:
        values: losses by name.
        step: for the message.
        samples: names those that the losses are of.

    Raises:
        SalmaError: one is not finite.
    """
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        where = f"; samples: {', '.join(names)}" if (names := samples()) else ""
        raise SalmaError(
            f"step {step}: not finite: {', '.join(wrong)}{where}",
            "look at those samples, lower train.learning_rate, or take train.precision=fp32",
        )


class BadSamples:
    """Counts what could not be read, by all processes together.

    Args:
        allowed: share of the samples above which the run stops.
        epoch: samples of one epoch; of less, or of less than a thousand, a share cannot be told from bad luck.
    """

    def __init__(self, allowed: float, epoch: int) -> None:
        self.allowed, self.epoch, self.count = allowed, epoch, 0

    def add(self, names: Sequence[str], drawn: int) -> None:
        """Take in what was bad of the samples `drawn` so far.

        Raises:
            DataError: they are too many.
        """
        self.count += len(names)
        if names and self.count > max(self.allowed * max(drawn, min(self.epoch, _ENOUGH)), 1):
            raise DataError(
                f"{self.count} samples could not be read, the last is {names[-1]}",
                "mend the data (salma data verify finds what is broken), or raise data.max_bad_fraction"
                f" = {self.allowed}",
            )


def same_scores(rounds: Sequence[float]) -> str | None:
    """What there is to say where validation gives the same again and again, to the last digit."""
    last = rounds[-SAME_ROUNDS:]
    if len(last) < SAME_ROUNDS or len(set(last)) > 1:
        return None
    return (
        f"fault: validation has been exactly {100 * last[-1]:.2f} for {SAME_ROUNDS} rounds; "
        "is what trains what is validated? see train.recipe, train.learning_rate and the losses"
    )


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor that several share."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
