"""Scores of fabricated predictions, and every way in which predictions can be wrong."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import binary_dilation

from salmacli.data.records import Expression
from salmacli.engine.scoring.evaluator import evaluate
from salmacli.errors import DataError
from salmacli.metrics.counts import NAMES, count


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def noisy(benchmark, seed=1):
    rng = np.random.default_rng(seed)
    return {key: mask ^ (rng.random(mask.shape) < 0.03) for key, mask in benchmark.masks.items()}


def test_the_truth_scores_one(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    results = evaluate(benchmark, make_predictions(tmp_path, benchmark)).results
    assert results["scores"] == {"J": 1.0, "F": 1.0, "JF": 1.0}
    assert results["counts"] == {
        "videos": 3,
        "expressions": 9,
        "left_out": 0,
        "frames": 36,
        "missing": 0,
        "problems": {},
        "extra": 0,
        "fallbacks": {},
    }
    assert results["metrics"] == ["J", "F", "JF"]
    assert results["problems"] == results["extra"] == []
    assert (results["schema"], results["benchmark"], results["mode"]) == (1, "mevis", "frames")


def disk(radius):
    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return rows**2 + columns**2 <= radius**2


def edge_of(mask):
    right, below = np.roll(mask, -1, axis=1), np.roll(mask, -1, axis=0)
    right[:, -1], below[-1] = mask[:, -1], mask[-1]
    corner = np.roll(below, -1, axis=1)
    corner[:, -1] = below[:, -1]
    edge = (mask != right) | (mask != below) | (mask != corner)
    edge[-1], edge[:, -1] = mask[-1] != right[-1], mask[:, -1] != below[:, -1]
    edge[-1, -1] = False
    return edge


def score(prediction, truth):
    """J and F of one frame as they are defined, by dilation."""
    J = 1.0 if not (prediction | truth).any() else (prediction & truth).sum() / (prediction | truth).sum()
    near = disk(int(np.ceil(0.008 * np.hypot(*truth.shape))))
    edges = edge_of(prediction), edge_of(truth)
    if not edges[0].any() or not edges[1].any():
        return J, float(edges[0].any() == edges[1].any())
    precision = (edges[0] & binary_dilation(edges[1], near)).sum() / edges[0].sum()
    recall = (edges[1] & binary_dilation(edges[0], near)).sum() / edges[1].sum()
    return J, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("name", ["mevis", "davis", "refytvos"])
def test_scores_are_means_over_frames_then_expressions(name, make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark(name)
    masks = noisy(benchmark)
    evaluation = evaluate(benchmark, make_predictions(tmp_path, benchmark, masks))
    expected = np.array(
        [[score(p, t) for p, t in zip(masks[key], truth, strict=True)] for key, truth in benchmark.masks.items()]
    )
    J, F = expected.mean(axis=1).T
    scores = evaluation.results["scores"]
    assert 0.1 < J.mean() < 0.9 and 0.1 < F.mean() < 0.9
    assert scores == pytest.approx({"J": J.mean(), "F": F.mean(), "JF": (J.mean() + F.mean()) / 2}, abs=1e-15)
    assert evaluation.rows["J"].tolist() == pytest.approx(J, abs=1e-15)
    assert evaluation.rows["JF"].tolist() == pytest.approx((J + F) / 2, abs=1e-15)
    assert evaluation.frames[["J", "F"]].to_numpy() == pytest.approx(expected.reshape(-1, 2), abs=1e-15)


def test_frames_hold_what_every_score_derives_from(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    masks = noisy(benchmark)
    frames = evaluate(benchmark, make_predictions(tmp_path, benchmark, masks)).frames
    keys = [(v.name, e.id, f) for v in benchmark.videos for e in v.expressions for f in v.frames]
    assert list(zip(frames["video"], frames["expression"], frames["frame"], strict=True)) == keys
    assert frames.columns[3:].tolist() == [*NAMES, "predicted", "pixels", "J", "F", "problem"]
    for row, (video, expression, frame) in enumerate(keys):
        prediction, truth = (of[video, expression][int(frame)] for of in (masks, benchmark.masks))
        assert frames[list(NAMES)].iloc[row].tolist() == count(prediction, truth).tolist()
        assert frames[["predicted", "pixels"]].iloc[row].tolist() == [prediction.sum(), 40 * 60]
    assert frames["problem"].isna().all()


def test_expressions_of_the_same_targets_share_their_truth(make_benchmark, make_predictions, tmp_path):
    expressions = [Expression(str(n), f"box {n}", ("0",) if n != 1 else ("1",)) for n in range(4)]
    benchmark = make_benchmark(videos=1, expressions=expressions)
    for n in (2, 3):
        benchmark.masks["v0", str(n)] = benchmark.masks["v0", "0"]
    masks = noisy(benchmark)
    asked = []
    give = benchmark.truth_bits
    benchmark.truth_bits = lambda video, expression: asked.append(expression.id) or give(video, expression)
    rows = evaluate(benchmark, make_predictions(tmp_path, benchmark, masks)).rows
    assert asked == ["0", "1"]
    assert rows["expression"].tolist() == ["0", "1", "2", "3"]
    expected = [
        np.mean([score(p, t)[0] for p, t in zip(masks[key], benchmark.masks[key], strict=True)])
        for key in benchmark.masks
    ]
    assert rows["J"].tolist() == pytest.approx(expected)


def test_an_expression_without_target_wants_an_empty_mask(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark(videos=1)
    one_pixel = np.zeros((4, 40, 60), dtype=bool)
    one_pixel[0, 5, 5] = True
    rows = evaluate(benchmark, make_predictions(tmp_path, benchmark, {("v0", "2"): one_pixel})).rows
    assert rows.set_index("expression").loc["2", ["J", "F"]].tolist() == [0.75, 0.75]


def test_groups_hold_their_expressions(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    empty = np.zeros((4, 40, 60), dtype=bool)
    wrong = {(v.name, "1"): empty for v in benchmark.videos}
    groups = evaluate(benchmark, make_predictions(tmp_path, benchmark, wrong)).results["groups"]
    assert groups["category"]["motion"] == {"J": 0.0, "F": 0.0, "JF": 0.0, "expressions": 3}
    assert groups["category"]["attribute"]["JF"] == 1.0
    assert groups["distractor"]["no"] == {"J": 0.5, "F": 0.5, "JF": 0.5, "expressions": 6}
    assert groups["distractor"]["yes"]["J"] == 1.0


def test_no_public_truth_says_what_to_do(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark("refytvos")
    folder = make_predictions(tmp_path, benchmark)
    benchmark.public = False
    with pytest.raises(DataError, match=r"refytvos valid has no public truth.*submission"):
        evaluate(benchmark, folder)


def test_files_written(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    folder = make_predictions(tmp_path / "predictions", benchmark)
    edit(folder / "v0.json", lambda content: content["expressions"]["0"].update(fallback="no-seg"))
    record = {"run": "r1", "checkpoint": {"step": 3}, "config": {"cma": True}}
    evaluation = evaluate(benchmark, folder, record=record)
    path = evaluation.write(tmp_path)
    results = json.loads(path.read_text())
    assert results == evaluation.results
    assert (results["run"], results["checkpoint"], results["config"]) == ("r1", {"step": 3}, {"cma": True})
    assert results["counts"]["fallbacks"] == {"no-seg": 1}
    rows = pd.read_csv(tmp_path / "per_expression.csv", dtype={"expression": str})
    names = "video,expression,text,kind,category,distractor,frames,missing,J,F,JF,intersection,union,predicted,empty"
    assert list(rows.columns) == [*names.split(","), "fallback", "empty_frames", "filled_frames", "answer"]
    assert rows["answer"].tolist() == ["It is [SEG]."] * 9
    assert rows["J"].tolist() == [1.0] * 9
