"""Which frames the LLM reads."""

from __future__ import annotations

import pytest
import torch

from salmacli.engine.prediction.key_frames import choose, farthest


def nobody(_):
    raise AssertionError("features are not needed")


def test_uniform_spreads_from_the_first_to_the_last_and_repeats_as_training_does():
    assert choose("uniform", 9, 3, 64, nobody) == [0, 4, 8]
    assert choose("uniform", 2, 4, 64, nobody) == [0, 0, 1, 1]
    assert choose("uniform", 1, 3, 64, nobody) == [0, 0, 0]


def test_first_takes_what_there_is():
    assert choose("first", 9, 3, 64, nobody) == [0, 1, 2]
    assert choose("first", 2, 3, 64, nobody) == choose("diverse", 2, 3, 64, nobody) == [0, 1]


def test_diverse_takes_one_of_each_kind_of_frame():
    kinds = torch.tensor([[0.0, 0.1, 0.0, 5.0, 5.1, 5.0, 0.1, 9.0]]).T
    chosen = choose("diverse", 8, 3, 64, lambda numbers: kinds[list(numbers)])
    assert {round(float(kinds[n])) for n in chosen} == {0, 5, 9} and chosen == sorted(chosen)


@pytest.mark.parametrize("candidates", [5, 64])
def test_diverse_looks_at_no_more_frames_than_it_may(candidates):
    asked = []

    def looks(numbers):
        asked.extend(numbers)
        return torch.randn(len(numbers), 4)

    chosen = choose("diverse", 1000, 4, candidates, looks)
    assert len(asked) == candidates and asked[0] == 0 and asked[-1] == 999
    assert len(set(chosen)) == 4 and set(chosen) <= set(asked)


def test_frames_that_look_alike_are_chosen_in_order():
    assert farthest(torch.zeros(4, 3), 3) == [0, 1, 2]
