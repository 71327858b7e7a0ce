"""Pickles of plain data. A pickle can call any function while it loads, so only data is let through."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from salmacli.errors import DataError


class _Plain(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which is not plain data")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to data outside itself")


def read_pickle(path: Path) -> Any:
    """Loads dictionaries, lists, strings and numbers, and nothing else.

    Raises:
        DataError: The file is missing, broken, or would run code.
    """
    try:
        with path.open("rb") as file:
            # Python 2 wrote the pickles of RefCOCO; its strings are bytes to Python 3.
            return _Plain(file, encoding="latin-1").load()
    except FileNotFoundError:
        raise DataError(f"{path} is missing", "fetch it, or check the folder") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise DataError(f"{path} is no pickle of plain data: {error}", "fetch it from its publisher again") from None
    except (MemoryError, OverflowError, RecursionError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}", "fetch it from its publisher again") from None
