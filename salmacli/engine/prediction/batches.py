"""Batches that become smaller when memory runs out, instead of losing the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from salmacli.errors import SalmaError

Result = TypeVar("Result")


class BatchSize:
    """How many things are done at once.

    Args:
        size: at first.
        what: the things' name, for messages.
        say: told when the size is halved.
    """

    def __init__(self, size: int, what: str, say: Callable[[str], object]) -> None:
        self.size, self.what, self.say = size, what, say

    def over(self, total: int, work: Callable[[slice], Result]) -> Iterator[Result]:
        """Do `total` things in order, batch by batch.

        Args:
            total: how many.
            work: does those of a slice. It is called again, with half as many, when memory runs out, so it must not
                have changed anything by then.

        Raises:
            SalmaError: memory does not hold even one.
        """
        start = 0
        while start < total:
            part = slice(start, min(start + self.size, total))
            fits, result = _attempt(work, part)
            if not fits:
                self._halve(part.stop - part.start)
                continue
            start = part.stop
            yield result  # type: ignore[misc]

    def _halve(self, tried: int) -> None:
        if tried == 1:
            raise SalmaError(
                f"memory does not hold even one of the {self.what} at a time",
                "free the device, take --precision bf16, or a smaller model",
            )
        self.size = tried // 2
        clear_device_cache(garbage_collection=True)
        self.say(f"out of memory with {tried} {self.what} at once; going on with {self.size}")


def _attempt(work: Callable[[slice], Result], part: slice) -> tuple[bool, Result | None]:
    """Whether it fits; apart, so that nothing keeps the failed attempt's tensors."""
    try:
        return True, work(part)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            return False, None
        raise


# Of libraries that find no room for their workspace; Accelerate does not know these.
_NO_ROOM = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION")


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is no memory left, of the device or of the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or should_reduce_batch_size(error):
        return True
    return any(text in str(error) for text in _NO_ROOM)
