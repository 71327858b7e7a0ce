"""Files written whole or not at all, and JSON read with errors that say where."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from salmacli.errors import DataError

_CHUNK = 1 << 20


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write ``data`` so that ``path`` holds either its old content or all of the new one.

    The folder is created when it is missing. Text is written as UTF-8 with line ends as given.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary file lies beside the target because a rename is atomic only within one file system.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, _usual_mode(path))
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write ``obj`` as indented JSON, atomically.

    Raises:
        ValueError: ``obj`` holds a NaN or an infinity, which JSON does not know.
    """
    write_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str], unique: bool = False) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        unique: Refuse an object that has a key twice, of which JSON readers silently keep the last.

    Raises:
        DataError: The file is missing, is not UTF-8 or is not JSON; the message names line and column.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows tools put a mark in front
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is missing", "check the path, or make the file again") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder where a JSON file is expected", "name the file itself") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text at byte {error.start}", "fetch or make the file again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "check its permissions") from None
    try:
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_unique if unique else None)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path} is not valid JSON at {where}: {error.msg}", "fetch or make the file again") from None
    except ValueError as error:
        reason = str(error).partition(";")[0]
        raise DataError(f"{path} is not valid JSON: {reason}", "fetch or make the file again") from None
    except RecursionError:
        raise DataError(f"{path} nests its JSON too deeply to be read", "fetch or make the file again") from None


def legible(text: str) -> str:
    """A text that can be written as UTF-8: halves of characters, as some names and answers have, become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number that JSON knows")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for n, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:n]))
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def safe_name(name: str, where: str) -> str:
    """Return ``name`` if it is one plain path component.

    Args:
        name: A video, frame or object name that a file by somebody else gives.
        where: The file and key it came from, for the message.

    Raises:
        DataError: The name is empty, absolute, ``.`` or ``..``, holds a separator, a drive or a control
        character.
    """
    plain = isinstance(name, str) and name not in ("", ".", "..") and not any(c in "/\\:" or ord(c) < 32 for c in name)
    if not plain:
        raise DataError(f"{where}: {name!r} is not a plain name and could lead outside the data folder", "rename it")
    return name


def _usual_mode(path: Path) -> int:
    """The mode an ordinary ``open`` would have given; ``mkstemp`` makes files private."""
    if path.exists():
        return path.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
