"""Several processes on one benchmark: who predicts which videos, and what little they say to each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING, TypeVar

from salmacli.errors import SalmaError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
# A process that has finished waits for the one with the longest video, maybe for hours.
PATIENCE = timedelta(days=14)


@dataclass(frozen=True)
class Group:
    """This process among those that predict together.

    Attributes:
        rank: Its number.
        ranks: How many they are.
        device: Where it computes.
    """

    rank: int
    ranks: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process is the one that claims, tells and scores."""
        return self.rank == 0

    def gather(self, item: Item) -> list[Item]:
        """What each process has to say, by rank; returns when all have said it."""
        if self.ranks == 1:
            return [item]
        from accelerate.utils import gather_object

        return list(gather_object([item]))

    def together(self, work: Callable[[], Item]) -> list[Item]:
        """What the work of each process gives, by rank.

        Raises:
            SalmaError: The first that was raised in any of them, in all of them. Another error, which is a bug, stays
                what it is where it was raised, and is told as one line to the others, or they would wait for ever.
        """
        found: Item | None = None
        own: Exception | None = None
        try:
            found = work()
        except Exception as caught:  # noqa: BLE001 - it is raised below
            own = caught
        told = own if own is None or isinstance(own, SalmaError) else _as_salma_error(own, self.rank)
        said = self.gather((found if own is None else None, told))
        if own is not None and told is not own:
            raise own
        for _, failed in said:
            if failed is not None:
                raise failed
        return [item for item, _ in said]  # type: ignore[misc]


def _as_salma_error(error: Exception, rank: int) -> SalmaError:
    what = " ".join(str(error).split())
    return SalmaError(f"process {rank + 1} stopped with {type(error).__name__}: {what}", "see its own message")


def rank_of_environment() -> int:
    """The number a launcher gave this process; 0 without one."""
    return int(os.environ.get("RANK", "0")) if several() else 0


def several() -> bool:
    """Whether a launcher started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def group() -> Iterator[Group]:
    """Meet the processes that `salma eval --num-gpus`, `accelerate launch` or another launcher started beside this one.

    They part when the context ends, however it ends.
    """
    import torch

    cuda = torch.cuda.is_available()
    if not several():
        yield Group(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    from accelerate import PartialState

    # Launchers other than torchrun leave it out.
    os.environ.setdefault("LOCAL_RANK", str(rank_of_environment() % max(torch.cuda.device_count(), 1)))
    # Gloo, on GPUs too: a few words are exchanged, and two processes may share one device.
    state = PartialState(cpu=not cuda, backend="gloo", timeout=PATIENCE)
    try:
        yield Group(state.process_index, state.num_processes, state.device)
    finally:
        # Without it a process may abort while the interpreter ends.
        state.destroy_process_group()


def share(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Share work out: the longest first, each piece to who has the least to do.

    Args:
        costs: Of each piece.
        ranks: How many share.

    Returns:
        For each of them positions in `costs`, in the order in which they are to be done.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [(0, rank) for rank in range(ranks)]
    heapify(load)
    for position in sorted(range(len(costs)), key=lambda position: (-costs[position], position)):
        done, rank = load[0]
        shares[rank].append(position)
        heapreplace(load, (done + costs[position], rank))
    return shares
