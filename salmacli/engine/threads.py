"""The same work on many items at once, with progress, in the items' order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from salmacli.engine.progress import Progress, Silent

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], task: str, progress: Progress | None = None
) -> list[Result]:
    """Call ``work`` on every item; NumPy, zlib and files leave the interpreter's lock, so threads help.

    The first error stops what has not begun and is raised.
    """
    progress = progress or Silent()
    progress.start(task, len(items))
    try:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            jobs = [pool.submit(work, item) for item in items]
            try:
                for job in as_completed(jobs):
                    job.result()
                    progress.advance()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            return [job.result() for job in jobs]
    finally:
        progress.finish()
