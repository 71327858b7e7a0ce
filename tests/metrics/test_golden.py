"""J, F and their statistics against the official code, to the last bit. tests/golden/make.py made the numbers."""

from __future__ import annotations

import hashlib
import json
import math
import runpy
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salmacli.data import rle
from salmacli.metrics.bits import Bits
from salmacli.metrics.contour import contour_accuracy
from salmacli.metrics.counts import count, trace
from salmacli.metrics.region import region_similarity
from salmacli.metrics.statistics import summarise

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SEQUENCES = (
    *("bike-packing", "blackswan", "bmx-trees", "breakdance", "camel"),
    *("dogs-jump", "gold-fish", "india", "judo", "loading"),
)


@pytest.fixture(scope="module")
def fuzz():
    return runpy.run_path(str(GOLDEN / "fuzz.py"))


@pytest.fixture(scope="module")
def cases():
    sys.path.insert(0, str(GOLDEN))
    try:
        return runpy.run_path(str(GOLDEN / "cases.py"))
    finally:
        sys.path.remove(str(GOLDEN))


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def scores(counts):
    """(2, n): J and F."""
    counts = np.stack(list(counts))
    return np.stack([region_similarity(counts), contour_accuracy(counts)])


def digest(found):
    return hashlib.sha256(np.ascontiguousarray(found).astype("<f8").tobytes()).hexdigest()


def agrees(found, expected):
    """Every J and F of a list of pairs is the official one."""
    assert found.shape[1] == expected["count"]
    digits = [hashlib.sha256(column.astype("<f8").tobytes()).hexdigest()[0] for column in found.T]
    others = [number for number, pair in enumerate(zip(digits, expected["digits"], strict=True)) if len({*pair}) > 1]
    assert others == [], "places in the list of the pairs whose J or F differs"
    for row, name in zip(found, "JF", strict=True):
        assert row[: len(expected[name]["first"])].tolist() == expected[name]["first"]
        assert math.fsum(row) == expected[name]["sum"]
        assert digest(row) == expected[name]["sha256"]


def agrees_with_object(found, expected, name):
    assert found.shape[1] == expected["frames"], name
    assert {measure: list(summarise(row)) for measure, row in zip("JF", found, strict=True)} == {
        measure: expected[measure] for measure in "JF"
    }, name
    assert digest(found)[:16] == expected["digest"], name


def chunk_agrees(fuzz, number, expected, prepare=lambda mask: mask):
    start = number * fuzz["CHUNK"]
    pairs = [fuzz["pair"](i) for i in range(start, start + fuzz["CHUNK"])]
    masks = hashlib.sha256()
    for one, other, radius in pairs:
        masks.update(repr((one.shape, radius)).encode() + one.tobytes() + other.tobytes())
    assert masks.hexdigest()[:16] == expected["masks"], "the pairs are not the ones that were scored"
    found = scores(count(prepare(prediction), prepare(truth), radius) for prediction, truth, radius in pairs)
    agrees(found, expected)


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_random_masks(each_kernel, fuzz, chunk):
    chunk_agrees(fuzz, chunk, golden("fuzz")["chunks"][chunk])


def test_random_masks_as_bits_down_the_columns(each_kernel, fuzz):
    chunk_agrees(fuzz, 0, golden("fuzz")["chunks"][0], lambda mask: Bits.of_mask(mask, by_columns=True))


@pytest.mark.slow
def test_all_random_masks(each_kernel, fuzz):
    chunks = golden("fuzz")["chunks"]
    assert len(chunks) * fuzz["CHUNK"] == fuzz["PAIRS"] >= 50_000
    for number, expected in enumerate(chunks):
        chunk_agrees(fuzz, number, expected)


def sav(shared_data):
    return json.loads((shared_data / "sav" / "sav_000001_manual.json").read_text())["masklet"]


FORMS = {
    "rle": (rle.bits, rle.bits),
    "rle against arrays": (rle.bits, rle.decode),
    "traced": (lambda mask: trace(rle.bits(mask)), lambda mask: trace(rle.bits(mask))),
}


@pytest.mark.parametrize("form", FORMS)
def test_real_run_lengths(each_kernel, shared_data, form):
    """Masklets against themselves a frame later, and against the others of the frame."""
    video = json.loads((shared_data / "sav" / "sav_000001_manual.json").read_text())["masklet"]
    predictions, truths = ([[read(mask) for mask in frame] for frame in video] for read in FORMS[form])
    next_frame = (
        count(prediction, truth)
        for after, now in zip(predictions[1:], truths, strict=False)
        for prediction, truth in zip(after, now, strict=True)
    )
    agrees(scores(next_frame), golden("sav")["next_frame"])
    same_frame = (
        count(of_predictions[j], of_truths[i])
        for of_predictions, of_truths in zip(predictions, truths, strict=True)
        for i, j in combinations(range(len(of_truths)), 2)
    )
    agrees(scores(same_frame), golden("sav")["same_frame"])


def pictures(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def real_masks_agree(folder, sequence):
    """Every label of two methods' masks, either as the truth, from arrays and from bits."""
    expected = golden("real_masks")
    osvos, rvos = (pictures(folder / method / sequence) for method in ("osvos", "rvos"))
    found = {}
    for label in map(str, range(1, 21)):
        pairs = [(one == int(label), other == int(label)) for one, other in zip(rvos, osvos, strict=True)]
        found["rvos against osvos", label] = scores(count(one, other) for one, other in pairs)
        both = [(Bits.of_mask(one), Bits.of_mask(other)) for one, other in pairs]
        found["osvos against rvos", label] = scores(count(other, one) for one, other in both)
    for label, of_label in expected["equal_labels"][sequence].items():
        for direction in expected["directions"]:
            agrees_with_object(found[direction, label], of_label, f"{direction}, {sequence}, label {label}")
    for direction, of_direction in expected["directions"].items():
        objects = of_direction["semi-supervised"]["objects"]
        for name in (name for name in objects if name.rsplit("_", 1)[0] == sequence):
            inner = found[direction, name.rsplit("_", 1)[1]][:, 1:-1]
            agrees_with_object(np.ascontiguousarray(inner), objects[name], f"{direction}, {name}")


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_real_masks(shared_data, sequence):
    real_masks_agree(shared_data / "real_masks", sequence)


@pytest.mark.slow
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_real_masks_by_every_kernel(each_kernel, shared_data, sequence):
    real_masks_agree(shared_data / "real_masks", sequence)


def test_named_masks(each_kernel, cases):
    masks = cases["masks"]()
    for names, expected in golden("cases")["masks"].items():
        prediction, truth = (masks[name] for name in names.split(" against "))
        assert scores([count(prediction, truth)]).ravel().tolist() == expected, names
    assert golden("cases")["masks"]["full against empty"] == [0.0, 1.0]


def test_mean_recall_and_decay(cases):
    """From 256 frames on the official decay is NaN or wrong (indices in 8 bits); ours is the right one."""
    ends = {256: (65, 191), 257: (65, 192), 300: (76, 224), 600: (151, 449), 1100: (276, 824)}
    official = golden("cases")["mean_recall_decay"]
    for number, values in cases["series"]().items():
        mean, recall, decay = summarise(values)
        assert [mean, recall] == official[number][:2]
        if int(number) < 256:
            assert decay == official[number][2]
        else:
            first, last = ends.pop(int(number))
            assert decay == values[:first].mean() - values[last:].mean() != official[number][2]
    assert ends == {}
