"""Who predicts which videos."""

from __future__ import annotations

import numpy as np
import pytest

from salmacli.engine.prediction.shares import Group, group, rank_of_environment, several, share
from salmacli.errors import DataError, SalmaError


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 20])
def test_everything_is_shared_out_once_and_evenly(ranks):
    costs = np.random.default_rng(0).integers(1, 100, 12).tolist()
    shares = share(costs, ranks)
    assert sorted(position for one in shares for position in one) == list(range(12)) and len(shares) == ranks
    loads = [sum(costs[position] for position in one) for one in shares]
    # Whoever has the most has less than the piece that came last to it more than anybody else.
    assert max(loads) - min(loads) <= max(costs)
    assert max(loads) <= sum(costs) / ranks + max(costs)
    for one in shares:
        assert [costs[position] for position in one] == sorted((costs[position] for position in one), reverse=True)
    assert share(costs, ranks) == shares


def test_the_longest_goes_first_and_equals_in_order():
    assert share([1, 9, 1, 5, 5], 2) == [[1, 0, 2], [3, 4]]
    assert share([2, 2, 2, 2], 3) == [[0, 3], [1], [2]]
    assert share([0, 0, 0], 2) == [[0, 1, 2], []] and share([], 2) == [[], []]


def test_one_process_alone_meets_nobody(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not several() and rank_of_environment() == 0
    with group() as here:
        assert here.main and here.ranks == 1 and here.gather("x") == ["x"] and here.together(lambda: 3) == [3]

        def fails():
            raise DataError("broken")

        with pytest.raises(DataError, match="broken"):
            here.together(fails)


def test_a_launcher_tells_the_rank(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert several() and rank_of_environment() == 3
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not several() and rank_of_environment() == 0


class First(Group):
    """The first of two processes, the other of which has said what it is given here; what the first says is kept."""

    said, other = None, (7, None)

    def gather(self, item):
        type(self).said = item
        return [item, self.other]


@pytest.mark.parametrize("error", [DataError("broken"), KeyError("a bug")])
def test_what_stops_one_process_stops_the_other_which_waits_for_it(error, monkeypatch):
    here = First(0, 2, None)

    def fails():
        raise error

    with pytest.raises(type(error)) as caught:
        here.together(fails)
    assert caught.value is error
    told = First.said[1]
    assert isinstance(told, SalmaError), "the others get it in a form that ends them in one line"
    monkeypatch.setattr(First, "other", (None, told))
    with pytest.raises(SalmaError):
        here.together(lambda: 3)
