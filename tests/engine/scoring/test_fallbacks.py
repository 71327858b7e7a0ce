"""Counts of fall-backs: by reason, and how many frames were empty and filled."""

from __future__ import annotations

import json

import pandas as pd

from salmacli.engine.scoring.evaluator import evaluate
from salmacli.engine.scoring.fallbacks import fallback_counts
from salmacli.engine.scoring.predictions import Said


def about(folder, video, **expressions):
    path = folder / f"{video}.json"
    content = json.loads(path.read_text())
    for key, change in expressions.items():
        content["expressions"][key[1:]].update(change)
    path.write_text(json.dumps(content))


def test_reasons_frames_and_the_policy_are_in_the_results(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    resolved = {"mode": "frames", "fallback": "previous"}
    record = {"resolved": resolved, "settings": {"fallback": "previous"}}
    folder = make_predictions(tmp_path / "predictions", benchmark, **record)
    none = {"fallback": None, "empty_frames": 0, "filled_frames": 0}
    for video in benchmark.videos:
        about(folder, video.name, _0=none, _1=none, _2=none)
    about(folder, "v0", _0={"fallback": "empty", "empty_frames": 4, "filled_frames": 0}, _1={"fallback": "no-seg"})
    about(folder, "v1", _0={"empty_frames": 2, "filled_frames": 2}, _2={"fallback": "empty", "empty_frames": 3})
    evaluation = evaluate(benchmark, folder)
    counts = evaluation.results["counts"]
    assert counts["fallbacks"] == {"empty": 2, "no-seg": 1}
    assert (counts["fallback"], counts["empty_frames"], counts["filled_frames"]) == ("previous", 9, 2)
    assert evaluation.results["settings"] == {"fallback": "previous"}
    evaluation.write(tmp_path / "scores")
    rows = pd.read_csv(tmp_path / "scores" / "per_expression.csv")
    assert rows["empty_frames"].tolist() == [4, 0, 0, 2, 0, 3, 0, 0, 0]
    assert pd.read_parquet(tmp_path / "scores" / "per_expression.parquet")["filled_frames"].sum() == 2


def test_only_what_is_scored_is_counted(make_benchmark, make_predictions, tmp_path):
    """MeViS v1 counts every kind; ReVOS leaves expressions without target out."""
    benchmark = make_benchmark("revos")
    folder = make_predictions(tmp_path, benchmark)
    about(folder, "v0", _0={"fallback": "no-seg"}, _2={"fallback": "empty"})
    assert evaluate(benchmark, folder).results["counts"]["fallbacks"] == {"no-seg": 1}


def test_predictions_of_an_earlier_version_count_what_they_know(make_benchmark, make_predictions, tmp_path):
    benchmark = make_benchmark()
    folder = make_predictions(tmp_path, benchmark)
    about(folder, "v0", _0={"fallback": "empty"})
    evaluation = evaluate(benchmark, folder)
    assert evaluation.results["counts"]["fallbacks"] == {"empty": 1}
    assert evaluation.results["counts"].keys().isdisjoint({"fallback", "empty_frames", "filled_frames"})
    assert evaluation.rows["empty_frames"].isna().all() and evaluation.results["settings"] == {}


def test_a_sum_that_is_not_whole_is_not_told():
    said = [Said(fallback="empty", empty=3, filled=1), Said(empty=2)]
    assert fallback_counts(said, {"resolved": "?"}) == {"fallbacks": {"empty": 1}, "empty_frames": 5}
