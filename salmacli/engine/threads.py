"""The same work on many items at once, with progress, in the items' order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import TypeVar

from salmacli.data.ahead import in_order
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
        with ThreadPoolExecutor(_number()) as pool:
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


def stream_in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], task: str, progress: Progress | None = None
) -> Iterator[Result]:
    """The same one result after the other, never far ahead of whoever takes them, so that few are held at once."""
    progress, threads = progress or Silent(), _number()
    progress.start(task, len(items))
    try:
        with closing(in_order(work, items, threads, ahead=threads)) as results:
            for result in results:
                yield result
                progress.advance()
    finally:
        progress.finish()


def _number() -> int:
    return min(8, os.cpu_count() or 1)
