"""Scores of fabricated predictions, and every way in which predictions can be wrong."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from salmacli.data.records import Expression
from salmacli.data.rle import encode
from salmacli.engine.evaluator import evaluate
from salmacli.errors import DataError
from salmacli.metrics.contour import contour_accuracy
from salmacli.metrics.counts import count
from salmacli.metrics.region import region_similarity


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
        "extra": 0,
        "fallbacks": {},
    }
    assert (results["schema"], results["benchmark"], results["mode"]) == (1, "mevis", "frames")


@pytest.mark.parametrize("name", ["mevis", "davis"])
def test_scores_are_means_over_frames_then_expressions(name, make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark(name)
    masks = noisy(benchmark)
    evaluation = evaluate(benchmark, make_predictions(tmp_path, benchmark, masks))
    J, F = [], []
    for key, truth in benchmark.masks.items():
        counts = np.stack([count(p, t) for p, t in zip(masks[key], truth, strict=True)])
        J.append(region_similarity(counts).mean())
        F.append(contour_accuracy(counts).mean())
    scores = evaluation.results["scores"]
    assert scores["J"] == pytest.approx(np.mean(J))
    assert scores["F"] == pytest.approx(np.mean(F))
    assert scores["JF"] == pytest.approx((np.mean(J) + np.mean(F)) / 2)
    assert evaluation.rows["J"].tolist() == pytest.approx(J)


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


def revos(make_benchmark):
    expressions = (
        Expression("0", "the red box", ("0",)),
        Expression("1", "the left box", ("1",)),
        Expression("2", "what would fall over", ("2",), kind="reasoning"),
        Expression("3", "what could fly", (), kind="no-target"),
    )
    return make_benchmark("revos", expressions=expressions)


def test_revos_is_the_mean_of_two_kinds(make_benchmark, make_predictions, tmp_path):
    benchmark = revos(make_benchmark)
    empty, full = np.zeros((4, 40, 60), dtype=bool), np.ones((4, 40, 60), dtype=bool)
    masks = {(v.name, "2"): empty for v in benchmark.videos} | {(v.name, "3"): full for v in benchmark.videos}
    evaluation = evaluate(benchmark, make_predictions(tmp_path, benchmark, masks))
    scores, counts = evaluation.results["scores"], evaluation.results["counts"]
    # two perfect referring expressions and one failed reasoning one per video: 1/2, not 2/3
    assert (scores["J"], scores["F"], scores["JF"]) == (0.5, 0.5, 0.5)
    share = np.mean([benchmark.masks[v.name, "2"].mean() for v in benchmark.videos])
    assert scores["A"] == pytest.approx((1 + 1 - share) / 2)
    assert "R" not in scores
    assert (counts["expressions"], counts["left_out"]) == (9, 3)
    assert set(evaluation.results["groups"]["kind"]) == {"referring", "reasoning"}


def test_revos_robustness_where_the_foreground_is_known(make_benchmark, make_predictions, tmp_path):
    benchmark = revos(make_benchmark)
    shifted = {(v.name, "0"): np.roll(benchmark.masks[v.name, "0"], 3, axis=2) for v in benchmark.videos}
    foreground = {v.name: np.ones((4, 40, 60), dtype=bool) for v in benchmark.videos}
    benchmark.foreground = lambda video: [encode(mask) for mask in foreground[video.name]]
    evaluation = evaluate(benchmark, make_predictions(tmp_path, benchmark, shifted))
    row = evaluation.rows.iloc[0]
    truth, prediction = benchmark.masks["v0", "0"], shifted["v0", "0"]
    outside = (prediction & ~truth).sum(axis=(1, 2))
    assert row["R"] == pytest.approx(np.mean(1 - outside / (40 * 60)))
    assert 0 < evaluation.results["scores"]["R"] < 1


def test_no_public_truth_says_what_to_do(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark("refytvos")
    folder = make_predictions(tmp_path, benchmark)
    benchmark.public = False
    with pytest.raises(DataError, match=r"refytvos valid has no public truth.*submission"):
        evaluate(benchmark, folder)


def remove_video(folder):
    (folder / "v1.json").unlink()


def remove_expression(folder):
    edit(folder / "v1.json", lambda content: content["expressions"].pop("1"))


def remove_frame(folder):
    def change(content):
        content["frames"].pop(2)
        for expression in content["expressions"].values():
            expression["masks"].pop(2)

    edit(folder / "v1.json", change)


def change_size(folder):
    edit(folder / "v1.json", lambda content: content.update(size=[60, 40]))


def cut_counts(folder):
    edit(folder / "v1.json", lambda content: content["expressions"]["1"]["masks"].__setitem__(3, "0P1"))


def null_mask(folder):
    edit(folder / "v1.json", lambda content: content["expressions"]["1"]["masks"].__setitem__(3, None))


@pytest.mark.parametrize(
    ("damage", "masks", "says"),
    [
        (remove_video, 12, "v1.json"),
        (remove_expression, 4, "'1' is missing"),
        (remove_frame, 3, "'00002' is missing"),
        (change_size, 12, r"\(60, 40\)"),
        (cut_counts, 1, "'00003'"),
        (null_mask, 1, "'00003'"),
    ],
)
def test_what_is_missing_is_named_and_counted(damage, masks, says, make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    folder = make_predictions(tmp_path, benchmark)
    damage(folder)
    with pytest.raises(DataError, match=rf"{masks} of 36 predicted masks .*{says}.*--missing zero"):
        evaluate(benchmark, folder)
    zero = evaluate(benchmark, folder, missing="zero").results
    drop = evaluate(benchmark, folder, missing="drop").results
    assert zero["scores"]["J"] == pytest.approx(1 - masks / 36)
    assert drop["scores"]["J"] == 1.0
    assert zero["counts"]["missing"] == drop["counts"]["missing"] == masks
    assert (zero["counts"]["frames"], drop["counts"]["frames"]) == (36, 36 - masks)
    assert zero["protocol"]["missing"] == "zero"


def test_what_is_too_much_is_counted(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    folder = make_predictions(tmp_path, make_benchmark(videos=4, frames=5))
    # one more video of 3 expressions and 5 frames, and a fifth frame of 9 expressions
    few = make_benchmark(videos=4, frames=5)
    benchmark.masks = {key: few.masks[key][:4] for key in benchmark.masks}
    assert evaluate(benchmark, folder).results["counts"]["extra"] == 15 + 9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(schema=2), "schema 2"),
        (lambda c: c.update(video="other"), "video 'other'"),
        (lambda c: c.update(size=[40]), "size"),
        (lambda c: c.update(frames="abc"), "frames"),
        (lambda c: c.update(frames=["00000"] * 4), "named twice"),
        (lambda c: c.update(expressions=[]), "expressions"),
        (lambda c: c["expressions"]["0"]["masks"].pop(), "'0' has not one mask"),
        (lambda c: c["expressions"].update({"0": None}), "'0' has not one mask"),
        (lambda c: c["expressions"]["0"].update(fallback=3), "fallback 3"),
        (lambda c: c["expressions"]["0"].update(text="the green box"), "answers 'the green box'"),
    ],
)
def test_a_broken_file_is_refused_even_where_missing_is_allowed(
    change, says, make_benchmark, make_predictions, tmp_path
):
    benchmark = make_benchmark()
    folder = make_predictions(tmp_path, benchmark)
    edit(folder / "v2.json", change)
    with pytest.raises(DataError, match=rf"v2\.json.*{says}"):
        evaluate(benchmark, folder, missing="zero")


def test_files_that_are_not_predictions(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    with pytest.raises(DataError, match="not a folder of predictions"):
        evaluate(benchmark, tmp_path / "nowhere")
    folder = make_predictions(tmp_path / "p", benchmark)
    (folder / "v0.json").write_text('{"schema": 1,')
    with pytest.raises(DataError, match=r"v0\.json is not valid JSON"):
        evaluate(benchmark, folder)


def test_predictions_of_another_benchmark(make_benchmark, make_predictions, tmp_path):
    folder = make_predictions(tmp_path, make_benchmark("davis"))
    with pytest.raises(DataError, match="benchmark 'davis', not 'mevis'"):
        evaluate(make_benchmark("mevis"), folder)


def test_a_benchmark_without_protocol(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark("own")
    with pytest.raises(DataError, match="no protocol to score 'own'"):
        evaluate(benchmark, make_predictions(tmp_path, benchmark))


def test_nothing_left_to_score(make_benchmark, tmp_path):
    with pytest.raises(DataError, match="no expression of mevis valid is left"):
        evaluate(make_benchmark(), tmp_path, missing="drop")


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
    names = "video,expression,text,kind,category,distractor,frames,J,F,JF,fallback"
    assert list(rows.columns) == names.split(",")
    assert rows["J"].tolist() == [1.0] * 9
