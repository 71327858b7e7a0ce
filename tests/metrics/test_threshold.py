"""The one-pass sweep against one comparison per threshold, and the honest choice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from salmacli.metrics.threshold import choose, dice, even_thresholds, intersection_over_union, sweep


def naive(scores, truth, thresholds):
    rows = []
    for threshold in thresholds:
        mask = scores.astype(np.float64) >= threshold
        union, total = (mask | truth).sum(), mask.sum() + truth.sum()
        both = (mask & truth).sum()
        rows.append((1.0 if union == 0 else both / union, 1.0 if total == 0 else 2 * both / total))
    return np.array(rows).T


@settings(max_examples=100, deadline=None)
@given(
    # Few distinct values, many of them thresholds themselves: ties are where an inexact sweep errs.
    arrays(np.float32, (6, 7), elements=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9, 1.0])),
    arrays(bool, (6, 7)),
    st.integers(1, 20),
)
def test_every_threshold_is_exact(scores, truth, number):
    thresholds = even_thresholds(number)
    counts = sweep(scores, truth, thresholds)
    assert counts.dtype == np.int64
    expected = naive(scores, truth, thresholds)
    assert (intersection_over_union(counts) == expected[0]).all()
    assert (dice(counts) == expected[1]).all()


def test_thresholds_outside_the_scores_and_empty_masks():
    thresholds = np.array([-1.0, 0.5, 2.0])
    nothing = np.zeros((2, 2), dtype=bool)
    counts = sweep(np.full((2, 2), 0.5), nothing, thresholds)
    assert intersection_over_union(counts).tolist() == [0.0, 0.0, 1.0]
    assert dice(counts).tolist() == [0.0, 0.0, 1.0]
    counts = sweep(np.full((2, 2), 0.5), ~nothing, thresholds)
    assert intersection_over_union(counts).tolist() == [1.0, 1.0, 0.0]


def test_large_counts_do_not_overflow():
    counts = np.array([[2**40, 2**40, 2**40]])
    assert intersection_over_union(counts).tolist() == [0.5]
    assert dice(counts) == pytest.approx([2 / 3])


def test_even_thresholds_hold_a_half():
    assert even_thresholds(99)[49] == 0.5
    assert len(even_thresholds(99)) == 99
    with pytest.raises(ValueError, match="at least one"):
        even_thresholds(0)


@pytest.mark.parametrize(
    ("scores", "truth", "thresholds"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3), bool), np.array([0.5])),
        (np.zeros((2, 2)), np.zeros((2, 2), np.uint8), np.array([0.5])),
        (np.zeros((2, 2)), np.zeros((2, 2), bool), np.array([0.5, 0.4])),
        (np.full((2, 2), np.nan), np.zeros((2, 2), bool), np.array([0.5])),
    ],
)
def test_input_that_cannot_be_swept(scores, truth, thresholds):
    with pytest.raises(ValueError, match="must"):
        sweep(scores, truth, thresholds)


def test_held_out_score_is_of_videos_the_choice_did_not_see():
    thresholds = np.array([0.3, 0.5, 0.7])
    # Each video likes a threshold of its own, so a choice made without it costs.
    scores = np.array([[0.9, 0.1, 0.2], [0.9, 0.1, 0.2], [0.1, 0.2, 0.8], [0.1, 0.2, 0.8]])
    choice = choose(scores, thresholds, ["a", "a", "b", "b"])
    assert choice.score == pytest.approx(0.5)
    assert choice.held_out == pytest.approx((0.2 * 2 + 0.1 * 2) / 4)
    assert sorted(choice.folds) == [0.3, 0.7]


def test_folds_never_split_a_video():
    rng = np.random.default_rng(0)
    thresholds = even_thresholds(9)
    scores = rng.random((12, 9))
    videos = [f"v{i // 2}" for i in range(12)]
    choice = choose(scores, thresholds, videos, folds=6)
    held_out = []
    for fold in range(6):
        without = np.array([v != f"v{fold}" for v in videos])
        best = scores[without].mean(axis=0).argmax()
        held_out += scores[~without, best].tolist()
    assert choice.held_out == pytest.approx(np.mean(held_out))


def test_one_video_has_no_held_out_score():
    choice = choose(np.ones((2, 3)), np.array([0.2, 0.5, 0.8]), ["a", "a"])
    assert (choice.threshold, choice.held_out, choice.folds) == (0.5, None, ())


def test_choice_needs_rows_that_fit():
    with pytest.raises(ValueError, match="do not fit"):
        choose(np.ones((2, 3)), np.array([0.2, 0.5]), ["a", "a"])
    with pytest.raises(ValueError, match="do not fit"):
        choose(np.ones((0, 2)), np.array([0.2, 0.5]), [])
