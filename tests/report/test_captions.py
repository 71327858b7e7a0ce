from __future__ import annotations

import numpy as np
import pytest

from salmacli.report.captions import PAPER, caption
from salmacli.report.overlays import colour_of


def ink(strip) -> np.ndarray:
    """Which pixels are not paper."""
    return (np.asarray(strip) != PAPER).any(axis=2)


def lines(strip, letter: int) -> int:
    return round(strip.height / (1.4 * letter) - 0.3)


def test_a_sentence_is_written_dark_on_white_and_keeps_a_margin():
    strip = caption([("the red circle", (255, 0, 0))], 320, 13, 5)
    assert strip.width == 320 and lines(strip, 13) == 1
    written = ink(strip)
    assert written.any() and not written[:, :3].any() and not written[:, -3:].any()
    assert np.asarray(strip).min() < 60  # legible
    assert (np.asarray(strip).max(axis=2) - np.asarray(strip).min(axis=2)).max() == 0  # no colour: there is only one


@pytest.mark.parametrize("width", [320, 1920])
@pytest.mark.parametrize("text", ["a word and another " * 20, "x" * 600, "红色的圆圈" * 70])
def test_long_sentences_are_wrapped_and_cut(width, text):
    letter = max(13, width // 45)
    whole = caption([(text, (0, 0, 0))], width, letter, 100)
    cut = caption([(text, (0, 0, 0))], width, letter, 3)
    assert lines(whole, letter) > lines(cut, letter) == 3
    third = 2 * round(1.4 * letter) + letter // 3
    same = np.asarray(whole)[: third + letter] == np.asarray(cut)[: third + letter]
    assert same[:third].all() and not same[third:].all()  # an ellipsis ends the last line
    for strip in (whole, cut):
        assert not ink(strip)[:, -2:].any()
        assert ink(strip)[: strip.height // 4].any() and ink(strip)[-strip.height // 3 :].any()


@pytest.mark.parametrize(
    "text",
    ["собака", "الكلب", "狗", "🐱\u200d🐱", "a\x00b\x07\n\tc", "\udcff", "e\u0301", "", " ", "\u202eabc", "\uffff"],
)
def test_no_text_is_too_strange(text):
    assert caption([(text, (0, 0, 0)), (text, (9, 9, 9))], 200, 14, 4).width == 200


def test_what_cannot_be_printed_is_shown_as_a_sign():
    strange, shown = (caption([(text, (0, 0, 0))], 200, 14, 4) for text in ("a\udcff\x1bb\tc", "a\ufffd\ufffdb c"))
    assert np.array_equal(strange, shown)


def test_each_sentence_has_a_square_of_its_colour():
    entries = [(f"sentence {n}", colour_of(n)) for n in range(5)]
    picture = np.asarray(caption(entries, 320, 13, 10))
    tops = [np.flatnonzero((picture == colour).all(axis=2).any(axis=1))[0] for _, colour in entries]
    assert tops == sorted(tops) and len(set(tops)) == 5


def test_what_does_not_fit_is_counted():
    entries = [(f"sentence {n} of very many", colour_of(n)) for n in range(200)]
    picture = caption(entries, 320, 13, 6)
    assert lines(picture, 13) == 6
    found = [(np.asarray(picture) == colour).all(axis=2).any() for _, colour in entries[:6]]
    assert found == [True] * 5 + [False]
    # Two sentences that just fit leave nothing to count.
    assert lines(caption(entries[:2], 320, 13, 2), 13) == 2
    one = caption([("a long sentence " * 9, (1, 2, 3)), ("b", (3, 2, 1))], 320, 13, 2)
    assert (np.asarray(one) == (1, 2, 3)).all(axis=2).any() and (np.asarray(one) == (3, 2, 1)).all(axis=2).any()


def test_colours_are_told_apart():
    colours = [colour_of(n) for n in range(200)]
    assert len(set(colours)) == 200 and all(0 <= c <= 255 for colour in colours for c in colour)
    first = np.array(colours[:8])
    assert min(np.abs(a - b).sum() for n, a in enumerate(first) for b in first[:n]) > 90
