"""Runs against benchmarks from results.json files, whole and broken."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from salmacli.engine.scoring.comparison import compare, mixed_protocols, read_results
from salmacli.errors import DataError


def put(runs, run, benchmark="mevis", mode="frames", score=0.5, **change):
    content = {
        "schema": 1,
        "benchmark": benchmark,
        "split": "valid",
        "synthetic": False,
        "mode": mode,
        "scores": {"J": score, "F": score, "JF": score},
        "config": None,
        "protocol": {"missing": "error"},
        **change,
    }
    path = runs / run / "eval" / benchmark / mode / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_rows_are_runs_and_modes_columns_benchmarks(tmp_path):
    put(tmp_path, "b", score=0.25)
    put(tmp_path, "a", mode="consistent", score=0.75)
    put(tmp_path, "a", benchmark="davis", score=1.0, synthetic=True)
    frame = compare(read_results(tmp_path)).frame
    assert list(frame.index) == [("a", "consistent"), ("a", "frames"), ("b", "frames")]
    names = ["davis valid (synthetic)", "mevis valid"]
    assert list(frame.columns) == [(name, metric) for name in names for metric in ("J", "F", "JF")]
    assert frame["mevis valid", "JF"].tolist()[::2] == [0.75, 0.25]
    assert pd.isna(frame.loc[("a", "frames"), ("mevis valid", "J")])


def test_synthetic_and_real_numbers_never_share_a_column(tmp_path):
    put(tmp_path, "a", score=0.5)
    put(tmp_path, "b", score=0.9, synthetic=True)
    comparison = compare(read_results(tmp_path))
    assert comparison.frame.notna().sum(axis=0).tolist() == [1] * 6
    assert not comparison.best().to_numpy().any()


def test_seeds_of_one_config_become_mean_and_spread(tmp_path):
    for seed, score in enumerate((0.4, 0.5, 0.6)):
        put(tmp_path, f"cma-s{seed}", score=score, config={"cma": True, "seed": seed})
    put(tmp_path, "plain", score=0.3, config={"cma": False, "seed": 0})
    put(tmp_path, "foreign", score=0.2)
    comparison = compare(read_results(tmp_path), group_seeds=True)
    assert list(comparison.frame.index) == [
        ("cma-s (3 runs)", "frames"),
        ("foreign", "frames"),
        ("plain", "frames"),
    ]
    assert comparison.frame["mevis valid", "JF"].tolist() == pytest.approx([0.5, 0.2, 0.3])
    spread = comparison.spread["mevis valid", "JF"]
    assert spread.iloc[0] == pytest.approx(0.1)
    assert spread.iloc[1:].isna().all()


def test_different_rules_are_noticed(tmp_path):
    put(tmp_path, "a")
    put(tmp_path, "b")
    assert mixed_protocols(read_results(tmp_path)) == []
    put(tmp_path, "c", protocol={"missing": "zero"})
    assert mixed_protocols(read_results(tmp_path)) == ["mevis valid"]


def test_each_benchmark_has_its_own_metrics(tmp_path):
    put(tmp_path, "a", score=0.5)
    put(tmp_path, "a", "refcoco+", metrics=["cIoU", "gIoU"], scores={"cIoU": 0.6, "gIoU": 0.7, "P@0.5": 0.8})
    put(tmp_path, "b", "refcoco+", metrics=["cIoU", "gIoU"], scores={"cIoU": 0.5, "gIoU": 0.75, "P@0.5": 0.8})
    comparison = compare(read_results(tmp_path))
    both = [("refcoco+ valid", metric) for metric in ("cIoU", "gIoU")]
    assert comparison.columns() == [("mevis valid", metric) for metric in ("J", "F", "JF")] + both
    assert comparison.frame[both].to_numpy().tolist() == [[0.6, 0.7], [0.5, 0.75]]
    assert comparison.best()[both].to_numpy().tolist() == [[True, False], [False, True]]


def test_other_protocols_than_the_usual_have_columns_of_their_own(tmp_path):
    v2 = ["J", "F", "JF", "N_acc", "T_acc", "final"]
    put(tmp_path, "a", protocol={"name": "v1"})
    put(tmp_path, "a", mode="v2", metrics=v2, scores=dict.fromkeys(v2, 0.25), protocol={"name": "v2"})
    put(tmp_path, "a", "mine", protocol={"name": "anything"}, synthetic=True)
    found = read_results(tmp_path)
    assert sorted(result.column for result in found) == [
        "mevis valid",
        "mevis valid (v2)",
        "mine valid (anything) (synthetic)",
    ]
    assert [metric for column, metric in compare(found).columns() if column == "mevis valid (v2)"] == v2


def test_settings_make_rows_of_their_own(tmp_path):
    settings = {"cma.temporal_prior": True, "window": 64}
    put(tmp_path, "a", score=0.5, settings={})
    path = put(tmp_path, "a", score=0.75, settings=settings)
    folder = path.parent.with_name("frames+cma.temporal_prior=true+window=64")
    path.parent.rename(folder)
    put(tmp_path, "a", score=0.5)  # of an earlier version, which knew no settings
    frame = compare(read_results(tmp_path)).frame
    assert list(frame.index) == [("a", "frames"), ("a", "frames cma.temporal_prior=true window=64")]
    assert frame["mevis valid", "JF"].tolist() == [0.5, 0.75]


def test_no_results_say_how_to_make_some(tmp_path):
    for runs in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="salma eval mevis"):
            read_results(runs)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 2}, "schema 2"),
        ({"schema": None}, "schema None"),
        ({"split": None}, "split is None"),
        ({"synthetic": "no"}, "synthetic is 'no'"),
        ({"scores": [1]}, "scores is"),
        ({"scores": {"J": 0.5, "F": 0.5}}, "score JF is None"),
        ({"scores": {"J": 50.1, "F": 0.5, "JF": 0.5}}, "score J is 50.1"),
        ({"metrics": "J"}, "metrics is 'J'"),
        ({"metrics": ["J", "cIoU"]}, "score cIoU is None"),
        ({"protocol": "v1"}, "protocol is 'v1'"),
        ({"settings": [3]}, "settings is \\[3\\]"),
        ({"scores": {"J": float("nan"), "F": 0.5, "JF": 0.5}}, "NaN is no number"),
    ],
)
def test_a_result_of_another_form_is_named(tmp_path, change, says):
    put(tmp_path, "a")
    path = put(tmp_path, "b", **change)
    with pytest.raises(DataError, match=says) as error:
        read_results(tmp_path)
    assert str(path) in str(error.value)


def test_broken_json_is_named(tmp_path):
    path = put(tmp_path, "a")
    for content, says in (("{", "not valid JSON"), ("[]", "holds no object")):
        path.write_text(content)
        with pytest.raises(DataError, match=says):
            read_results(tmp_path)
