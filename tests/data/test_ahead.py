from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from salmacli.data.ahead import in_order


def test_results_keep_the_order_of_the_items_whichever_is_done_first():
    def work(number: int) -> int:
        time.sleep(0.01 if number % 3 == 0 else 0)
        return number

    assert list(in_order(work, range(20), threads=4, ahead=6)) == list(range(20))
    assert list(in_order(work, [], threads=2, ahead=3)) == []


def test_several_items_are_worked_on_at_once():
    together = threading.Barrier(3, timeout=10)  # breaks unless three meet
    list(in_order(lambda _: together.wait(), range(6), threads=3, ahead=3))


def test_it_never_runs_further_ahead_than_it_may():
    drawn, done = 0, 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for number in range(30):
            drawn += 1
            yield number

    for done, _ in enumerate(in_order(lambda n: n, items(), threads=4, ahead=5), 1):
        assert drawn <= done + 5
    assert done == 30


def test_one_thread_works_in_order():
    seen = []
    list(in_order(seen.append, range(50), threads=1, ahead=7))
    assert seen == list(range(50))


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
def test_an_error_comes_at_its_place(ahead):
    def work(number: int) -> int:
        return 12 // (3 - number)

    results = in_order(work, range(6), threads=2, ahead=ahead)
    assert [next(results) for _ in range(3)] == [4, 6, 12]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_items_that_break_off_are_an_error_at_its_place_too():
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("no more")

    results = in_order(lambda n: n, items(), threads=2, ahead=5)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(results)


def test_a_consumer_that_stops_early_ends_the_threads_and_what_has_not_begun():
    before, begun = threading.active_count(), []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.02)
        return number

    results = in_order(work, range(1000), threads=2, ahead=50)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before
    assert len(begun) < 10


def test_without_threads_the_consumer_works_itself_and_nothing_ahead():
    begun = []

    def work(number: int) -> int:
        begun.append(threading.get_ident())
        return 10 // number

    results = in_order(work, iter([2, 1, 0]), threads=0, ahead=5)
    assert next(results) == 5 and begun == [threading.get_ident()]
    assert next(results) == 10
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_results_that_were_taken_are_let_go():
    class Big:
        living = 0

        def __init__(self, _: int) -> None:
            Big.living += 1

        def __del__(self) -> None:
            Big.living -= 1

    most = 0
    for _ in in_order(Big, range(60), threads=2, ahead=3):
        most = max(most, Big.living)
    assert most <= 3 + 2  # those ahead, the one here and the one before it
