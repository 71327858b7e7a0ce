"""What stops or warns, by itself."""

from __future__ import annotations

import pytest
import torch

from salmacli.engine.training.guards import (
    BadSamples,
    Movement,
    refuse_not_finite,
    refuse_silent,
    same_scores,
    silent_parts,
)
from salmacli.errors import DataError, SalmaError


def alone(values):
    return values


def part(*gradients):
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    return parameters


def test_a_part_needs_one_gradient_that_is_not_zero_and_none_that_is_no_number():
    parts = {
        "learns": part(None, [0.0, 0.0], [0.0, 1e-30]),
        "is not reached": part(None, None),
        "gets nothing": part([0.0, 0.0]),
        "is broken": part([1.0, float("nan")]),
    }
    assert silent_parts(parts, alone) == ["is not reached", "gets nothing", "is broken"]
    # What one process lacks, another may have.
    assert silent_parts(parts, lambda found: found + torch.tensor([[0.0, 0], [1, 0], [0, 0], [0, 0]])) == [
        "gets nothing",
        "is broken",
    ]
    refuse_silent([])
    with pytest.raises(SalmaError, match="non-zero gradient: gets nothing"):
        refuse_silent(["gets nothing"])


def test_every_part_must_have_moved():
    moves, stays = part(None), part(None, None)
    movement = Movement({"one": moves, "other": stays}, alone)
    with torch.no_grad():
        moves[0][1] += 1e-6
    with pytest.raises(SalmaError, match=r"after step 5 .* have not moved: other"):
        movement.check(5)
    with torch.no_grad():
        stays[1][0] *= -1
    movement.check(5)


def test_numbers_must_be_finite():
    refuse_not_finite({"bce": 1.0}, 3, tuple)
    with pytest.raises(SalmaError, match="step 3: not finite: dice, lm; samples: a, b;"):
        refuse_not_finite({"bce": 1.0, "dice": float("inf"), "lm": float("nan")}, 3, lambda: ["a", "b"])


def test_the_limit_of_bad_samples_is_a_share_of_what_was_drawn():
    bad = BadSamples(0.01, epoch=3_000_000)
    bad.add([f"s{n}" for n in range(10)], drawn=256)  # 1 % of the first thousand
    with pytest.raises(DataError, match="11 samples could not be read, the last is s10"):
        bad.add(["s10"], drawn=512)
    later = BadSamples(0.01, epoch=3_000_000)
    later.add([f"s{n}" for n in range(100)], drawn=10_000)
    small = BadSamples(0.0, epoch=6)
    small.add(["s0"], drawn=6)  # one alone says nothing
    with pytest.raises(DataError):
        small.add(["s1"], drawn=12)


@pytest.mark.parametrize(
    ("rounds", "fault"), [([0.5, 0.5], False), ([0.4, 0.5, 0.5, 0.5], True), ([0.5, 0.5, 0.5000001], False)]
)
def test_a_validation_that_never_changes_is_a_fault(rounds, fault):
    assert (same_scores(rounds) is not None) == fault
