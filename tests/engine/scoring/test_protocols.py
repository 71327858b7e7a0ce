"""What each protocol makes of the same counts, and that it says so."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from salmacli.data.records import Expression
from salmacli.engine.scoring.evaluator import evaluate
from salmacli.engine.scoring.protocols import PROTOCOLS, protocol_of
from salmacli.errors import DataError, UsageError
from salmacli.metrics.bits import Bits

EMPTY, FULL = np.zeros((4, 40, 60), dtype=bool), np.ones((4, 40, 60), dtype=bool)


def test_every_benchmark_has_its_default_and_says_its_rules():
    defaults = {benchmark: next(iter(found)) for benchmark, found in PROTOCOLS.items()}
    pictures = dict.fromkeys(("refcoco", "refcoco+", "refcocog", "grefcoco"), "default")
    assert defaults == {"davis": "expression", "mevis": "v1", "revos": "default", "refytvos": "default", **pictures}
    for benchmark, found in PROTOCOLS.items():
        for name, protocol in found.items():
            assert protocol_of(benchmark, name) is protocol and protocol.name == name
            record = protocol.record("drop")
            words = ["name", "frames", "void", "matching", "empty", "overall", "rounding", "missing", "differs"]
            assert list(record) == words
            assert record["missing"] == "drop" and all(record.values())


def test_what_there_is_no_protocol_for():
    with pytest.raises(DataError, match="no protocol to score 'own'; use one of davis, mevis"):
        protocol_of("own")
    with pytest.raises(UsageError, match="davis has no protocol 'v2'; choose one of expression, annotators"):
        protocol_of("davis", "v2")


def test_annotators_have_an_evaluator_of_their_own(make_benchmark, make_predictions, tmp_path, monkeypatch):
    from salmacli.engine.scoring import annotators

    monkeypatch.setattr(annotators, "evaluate_annotators", lambda *args: args)
    benchmark = make_benchmark("davis")
    given = evaluate(benchmark, tmp_path, "annotators", "zero", {"run": "r"})
    assert given == (benchmark, tmp_path, "annotators", "zero", {"run": "r"}, None)


def one_pixel(frame):
    mask = EMPTY.copy()
    mask[frame, 5, 5] = True
    return mask


def test_mevis_v1_counts_every_expression(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    wrong = {("v0", "2"): one_pixel(1), ("v1", "0"): EMPTY}
    results = evaluate(benchmark, make_predictions(tmp_path, benchmark, wrong)).results
    assert results["scores"]["J"] == pytest.approx((7 + 3 / 4 + 0) / 9)
    assert results["groups"]["kind"]["no-target"]["J"] == pytest.approx((2 + 3 / 4) / 3)


def test_mevis_v2_sets_expressions_without_target_apart(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    # One of three no-targets is missed by one pixel; of six targets one has no pixel, one a single wrong pixel.
    wrong = {("v0", "2"): one_pixel(3), ("v1", "0"): EMPTY, ("v2", "1"): one_pixel(0)}
    results = evaluate(benchmark, make_predictions(tmp_path, benchmark, wrong), "v2").results
    scores = results["scores"]
    assert list(scores) == results["metrics"] == ["J", "F", "JF", "N_acc", "T_acc", "final"]
    assert scores["J"] == pytest.approx(4 / 6) and scores["JF"] == (scores["J"] + scores["F"]) / 2
    assert (scores["N_acc"], scores["T_acc"]) == pytest.approx((2 / 3, 5 / 6))
    assert scores["final"] == pytest.approx((scores["JF"] + 2 / 3 + 5 / 6) / 3)
    assert results["groups"]["kind"] == {
        "no-target": {"N_acc": pytest.approx(2 / 3), "expressions": 3},
        "referring": {
            **{metric: pytest.approx(scores[metric]) for metric in ("J", "F", "JF", "T_acc")},
            "expressions": 6,
        },
    }
    assert "not public" in results["protocol"]["differs"]


def test_a_missing_mask_is_no_answer_to_whether_something_is_there(make_benchmark, tmp_path):
    benchmark = make_benchmark(videos=1)
    folder = tmp_path / "v0"
    for expression in "012":
        for frame in range(4):
            path = folder / expression / f"{frame:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(benchmark.masks["v0", expression][frame]).save(path)
    (folder / "2" / "00001.png").unlink()
    (folder / "0").rename(tmp_path / "aside")
    assert evaluate(benchmark, tmp_path, "v2", "zero").results["scores"]["N_acc"] == 0.0
    assert evaluate(benchmark, tmp_path, "v2", "zero").results["scores"]["T_acc"] == 0.5
    scores = evaluate(benchmark, tmp_path, "v2", "drop").results["scores"]
    assert (scores["N_acc"], scores["T_acc"], scores["final"]) == (1.0, 1.0, 1.0)


def test_mevis_v2_without_no_targets_has_no_final_score(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark(expressions=[Expression("0", "the red box", ("0",))])
    with pytest.raises(DataError, match="v2 needs expressions with a target and without"):
        evaluate(benchmark, make_predictions(tmp_path, benchmark), "v2")


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
    benchmark.annotated_bits = lambda video: [Bits.of_mask(mask) for mask in foreground[video.name]]
    evaluation = evaluate(benchmark, make_predictions(tmp_path, benchmark, shifted))
    row = evaluation.rows.iloc[0]
    truth, prediction = benchmark.masks["v0", "0"], shifted["v0", "0"]
    outside = (prediction & ~truth).sum(axis=(1, 2))
    assert row["R"] == pytest.approx(np.mean(1 - outside / (40 * 60)))
    assert 0 < evaluation.results["scores"]["R"] < 1


def picture_benchmark(make_benchmark, name):
    """Four pictures with one target of 100 pixels each; in gRefCOCO two no-targets more."""
    kinds = ["referring"] * 4 + ["no-target"] * 2 * (name == "grefcoco")
    expressions = [Expression(str(n), f"it {n}", (str(n),) if k == "referring" else (), k) for n, k in enumerate(kinds)]
    benchmark = make_benchmark(name, videos=1, frames=1, expressions=expressions)
    for n, kind in enumerate(kinds):
        benchmark.masks["v0", str(n)] = EMPTY[:1].copy()
        benchmark.masks["v0", str(n)][0, 0:10, 0:10] = kind == "referring"
    return benchmark


def lines(pixels):
    """A mask of the first pixels along the rows of the target's box."""
    mask = EMPTY[:1].copy()
    mask[0, 0:10, 0:10] = (np.arange(100) < pixels).reshape(10, 10)
    return mask


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_refcoco(name, make_benchmark, make_predictions, tmp_path):
    benchmark = picture_benchmark(make_benchmark, name)
    masks = {("v0", str(n)): lines(pixels) for n, pixels in enumerate((100, 70, 49, 0))}
    results = evaluate(benchmark, make_predictions(tmp_path, benchmark, masks)).results
    assert results["metrics"] == ["cIoU", "gIoU"]
    expected = {"cIoU": 219 / 400, "gIoU": 2.19 / 4}
    expected |= {"P@0.5": 0.5, "P@0.6": 0.5, "P@0.7": 0.5, "P@0.8": 0.25, "P@0.9": 0.25}
    assert results["scores"] == pytest.approx(expected)
    assert list(results["scores"]) == list(expected)


def test_a_missing_picture_scores_zero_in_every_sum(make_benchmark, tmp_path):
    benchmark = picture_benchmark(make_benchmark, "grefcoco")
    for n in range(5):
        path = tmp_path / "v0" / str(n) / "00000.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(benchmark.masks["v0", str(n)][0]).save(path)
    (tmp_path / "v0" / "0" / "00000.png").unlink()
    scores = evaluate(benchmark, tmp_path, missing="zero").results["scores"]
    # Lost are one target of 100 pixels and one of the two no-targets.
    assert scores.items() >= {"cIoU": 0.75, "gIoU": 4 / 6, "N_acc": 0.5, "T_acc": 0.75, "P@0.5": 0.75}.items()
    scores = evaluate(benchmark, tmp_path, missing="drop").results["scores"]
    assert set(scores.values()) == {1.0}


def test_grefcoco(make_benchmark, make_predictions, tmp_path):
    benchmark = picture_benchmark(make_benchmark, "grefcoco")
    masks = {("v0", str(n)): lines(pixels) for n, pixels in enumerate((100, 80, 0, 50, 0, 30))}
    results = evaluate(benchmark, make_predictions(tmp_path, benchmark, masks)).results
    assert results["metrics"] == ["cIoU", "gIoU", "N_acc", "T_acc"]
    # The second no-target is missed by 30 pixels: they join the unions, and its IoU is 0.
    expected = {"cIoU": 230 / (400 + 30), "gIoU": (1 + 0.8 + 0 + 0.5 + 1 + 0) / 6, "N_acc": 0.5, "T_acc": 0.75}
    expected |= {"P@0.5": 0.75, "P@0.6": 0.5, "P@0.7": 0.5, "P@0.8": 0.5, "P@0.9": 0.25}
    assert results["scores"] == pytest.approx(expected)
