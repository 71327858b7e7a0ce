"""Work that runs ahead of whoever takes its results, in order and never far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Call ``work`` on every item in threads and yield the results in the items' order.

    What ``work`` or ``items`` raises comes at its place: the results before it are yielded first, nothing after it is.
    When the consumer stops early, what has not begun is dropped and the threads end before the generator does.

    Args:
        work: With one thread it is called in order, too.
        items: Drawn by the thread that takes the results, as far ahead as these are.
        threads: How many calls run at once. With 0 the consumer makes them itself, one by one and nothing ahead: for
            work so short that a thread would take longer to start.
        ahead: How many items are worked on or done beyond the one that is yielded; never more are held.
    """
    if not threads:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for job in _submitted(pool, work, items):
                waiting.append(job)
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _submitted(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Future[Result]]:
    """One job per item; where the items themselves break off with an error, one last job that has failed with it."""
    try:
        for item in items:
            yield pool.submit(work, item)
    except Exception as error:  # noqa: BLE001 - whoever takes the results gets it
        failed: Future[Result] = Future()
        failed.set_exception(error)
        yield failed
