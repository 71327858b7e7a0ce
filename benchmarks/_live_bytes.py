"""How many bytes of tensors are alive, and how many were at most: on any device, and on shapes alone."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages of all tensors that operators return, until they are freed; a context.

    What operators take for themselves while they run, and what an allocator holds back, is not counted.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def hold(self, tensors: Any) -> None:
        """Count tensors that were there before, in whatever containers."""
        for one in tree_leaves(tensors):
            if isinstance(one, Tensor):
                self._add(one)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.hold(out)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        name, size = storage._cdata, storage.nbytes()
        if name not in self._known:
            self._known.add(name)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, name, size).atexit = False

    def _gone(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.now -= size
