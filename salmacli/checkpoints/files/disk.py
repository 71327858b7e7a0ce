"""Room on the disk, and folders that are replaced whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from salmacli.errors import CheckpointError


def room(path: Path, size: int) -> None:
    """Make sure that ``size`` more bytes fit on the disk where ``path`` is or will be.

    Raises:
        CheckpointError: They do not.
    """
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        raise CheckpointError(
            f"{path} needs {size / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB left",
            "make room, or write to another disk",
        )


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder`` that takes its place, synced to the disk, when the block ends well.

    When it does not, ``folder`` is as it was and nothing is left over.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        yield part
        part.chmod(0o755)
        for file in part.iterdir():
            sync(file)
        sync(part)
        _swap(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _swap(part: Path, folder: Path) -> None:
    """Put ``part`` in the place of ``folder``; a folder with content cannot be renamed over."""
    old: Path | None = None
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
        os.replace(folder, old / "it")
    os.replace(part, folder)
    sync(folder.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handle on a folder to sync
    # Windows syncs only files open for writing.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        with suppress(OSError):  # some network file systems cannot sync folders
            os.fsync(handle)
    finally:
        os.close(handle)
