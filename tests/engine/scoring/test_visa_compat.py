"""ReVOS as the official script computes it: 8 bits that wrap around, each expression rounded."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from salmacli.data.records import Expression, Video
from salmacli.data.rle import encode
from salmacli.engine.scoring.evaluator import evaluate

SHAPE = (100, 100)
FRAMES = 24


def pixels(*spans):
    """A mask that holds the pixels of the given spans, counted along the rows."""
    mask = np.zeros(SHAPE[0] * SHAPE[1], dtype=bool)
    for start, stop in spans:
        mask[start:stop] = True
    return mask.reshape(SHAPE)


def case():
    """Three objects in 24 frames, of which two are meant and overlap in one pixel of the third frame.

    Of each target 20 pixels are missed; outside are none in the first frame, 6 in the second, 58 in the others.
    """
    objects, predictions = [], []
    for frame in range(FRAMES):
        shared = frame == 2
        objects.append((pixels((0, 300)), pixels((300 - shared, 585 - shared)), pixels((2000, 3640))))
        outside = {0: 0, 1: 6}.get(frame, 58)
        predictions.append(pixels((20, 585 - shared), (5000, 5000 + outside)))
    return objects, predictions


class Case:
    """The case as a benchmark."""

    name, split, synthetic, root = "revos", "valid", False, "nowhere"

    def __init__(self, objects, expressions):
        self.by_frame = objects
        self.videos = (Video("v0", tuple(f"{n:05d}" for n in range(len(objects))), tuple(expressions)),)

    def objects(self, video, expression):
        return [[encode(of_frame[int(n)]) for of_frame in self.by_frame] for n in expression.targets]

    def truth_bits(self, video, expression):
        from salmacli.metrics.bits import Bits

        chosen = [[of_frame[int(n)] for n in expression.targets] for of_frame in self.by_frame]
        return [Bits.of_mask(np.any([np.zeros(SHAPE, bool), *masks], axis=0)) for masks in chosen]

    def annotated(self, video):
        return [[encode(of_frame[n]) for of_frame in self.by_frame] for n in range(len(self.by_frame[0]))]

    def annotated_bits(self, video):
        from salmacli.metrics.bits import Bits

        return [Bits.of_mask(np.any(of_frame, axis=0)) for of_frame in self.by_frame]


def by_uint8(objects, predictions, targets, value):
    """A and R of one expression in 8 bits, written down straight."""
    A, R = [], []
    for of_frame, prediction in zip(objects, predictions, strict=True):
        truth = np.zeros(SHAPE, dtype=np.uint8)
        for n in targets:
            truth += of_frame[n].astype(np.uint8)
        foreground = np.stack(of_frame, axis=2).sum(axis=2).astype(np.uint8)
        picture = (prediction * value).astype(np.uint8)
        A.append((truth == picture).mean())
        R.append(max(1 - ((1 - truth) * picture).sum() / (foreground.sum() + 1e-6), 0.0))
    return np.mean(A), np.mean(R)


def write(folder, benchmark, masks, foreground=255):
    for expression, of_expression in masks.items():
        for frame, mask in zip(benchmark.videos[0].frames, of_expression, strict=True):
            path = folder / "v0" / expression / f"{frame}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * np.uint8(foreground)).save(path)
    return folder


@pytest.mark.parametrize("foreground", [255, 1])
def test_the_four_figures(foreground, tmp_path):
    objects, predictions = case()
    benchmark = Case(objects, [Expression("0", "the two on the left", ("0", "1"))])
    folder = write(tmp_path, benchmark, {"0": predictions}, foreground)
    evaluation = evaluate(benchmark, folder, "visa-compat")
    figures = {"A_rle": 0.9927, "R_rle": 0.9712, "A": 0.9362, "R": 0.0547}
    row = evaluation.rows.iloc[0]
    for path, value in (("", 255), ("_rle", 1)):
        A, R = by_uint8(objects, predictions, (0, 1), value)
        assert (row[f"A{path}"], row[f"R{path}"]) == (A, R)
        assert (round(A, 4), round(R, 4)) == (figures[f"A{path}"], figures[f"R{path}"])
    # Rounded to two decimals of a percent they are the scores.
    assert {metric: evaluation.results["scores"][metric] for metric in figures} == pytest.approx(figures, abs=1e-15)
    default = evaluate(benchmark, folder).rows.iloc[0]
    assert (default["A"], default["R"]) != (row["A"], row["R"])
    agree = [(p == (a | b)).mean() for p, (a, b, _) in zip(predictions, objects, strict=True)]
    assert default["A"] == pytest.approx(np.mean(agree))


def test_each_expression_is_rounded_before_it_is_averaged(tmp_path):
    objects, predictions = case()
    expressions = [
        Expression("0", "both", ("0", "1")),
        Expression("1", "the first", ("0",)),
        Expression("2", "the one that moves", ("1",), "reasoning"),
        Expression("3", "nothing", (), "no-target"),
    ]
    benchmark = Case(objects, expressions)
    folder = write(tmp_path, benchmark, dict.fromkeys("0123", predictions))
    evaluation = evaluate(benchmark, folder, "visa-compat")
    rows = evaluation.rows.set_index("expression")
    expected = {}
    for metric in ("J", "F", "A", "R", "A_rle", "R_rle"):
        percent = [round(100 * np.float64(value), 2) for value in rows[metric]]
        expected[metric] = (np.mean(percent[:2]) + percent[2]) / 2 / 100
        assert expected[metric] != (rows[metric][:2].mean() + rows[metric]["2"]) / 2
    expected["JF"] = (expected["J"] + expected["F"]) / 2
    assert evaluation.results["scores"] == pytest.approx(expected, abs=1e-15)
    assert evaluation.results["micro"]["J"] == pytest.approx(np.round(100 * rows["J"][:3], 2).mean() / 100, abs=1e-15)
    assert evaluation.results["counts"]["left_out"] == 1


def test_a_fault_costs_the_whole_expression_as_it_does_there(tmp_path):
    objects, predictions = case()
    benchmark = Case(objects, [Expression("0", "both", ("0", "1")), Expression("1", "one", ("0",))])
    folder = write(tmp_path, benchmark, dict.fromkeys("01", predictions))
    (folder / "v0" / "0" / "00007.png").unlink()
    rows = evaluate(benchmark, folder, "visa-compat", "zero").rows
    assert (rows.loc[0, ["J", "F", "JF", "A", "R", "A_rle", "R_rle"]] == 0).all() and (
        rows.loc[1, ["J", "A"]] > 0
    ).all()
    rows = evaluate(benchmark, folder, "default", "zero").rows
    assert rows.loc[0, "J"] > 0
