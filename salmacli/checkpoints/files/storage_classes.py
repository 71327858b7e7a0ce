"""Where a pickle uses the classes of storages, told from its instructions alone."""

from __future__ import annotations

import pickletools
import re
from typing import Any

STORAGE = re.compile(r"torch\.(cuda\.|storage\.)?[A-Za-z0-9]+Storage")
_MARK = object()


class StorageClasses:
    """Follows where a pickle's instructions put the classes of storages, which reserve memory when they are called.

    Weights name them in references to the file's own bytes only. What is on the stack: a mark, or whether it is or
    holds such a class.
    """

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def follow(self, code: pickletools.OpcodeInfo, argument: Any, name: str) -> bool:
        """Do one instruction; False where it uses a class for something else.

        Args:
            code, argument: Of ``pickletools.genops``.
            name: The global that it puts on the stack, if it does.
        """
        if "GET" in code.name:
            self._stack.append(self._memo.get(argument, False))
        elif "PUT" in code.name or code.name == "MEMOIZE":
            self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]
        elif code.name == "DUP":
            self._stack.append(self._stack[-1])
        elif code.name == "MARK":
            self._stack.append(_MARK)
        else:
            held = self._take(code)
            tuple_ = code.name.startswith("TUPLE")
            self._stack += [(held and tuple_) or bool(STORAGE.fullmatch(name))] * len(code.stack_after)
            return not held or tuple_ or code.name in ("BINPERSID", "POP", "POP_MARK")
        return True

    def _take(self, code: pickletools.OpcodeInfo) -> bool:
        before = list(code.stack_before)
        taken = []
        if pickletools.markobject in before:
            while (item := self._stack.pop()) is not _MARK:
                taken.append(item)
            before = before[: before.index(pickletools.markobject)]
        taken += [self._stack.pop() for _ in before]
        return any(item is True for item in taken)
