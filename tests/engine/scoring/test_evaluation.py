"""Files of an evaluation: whole, of one evaluation, and the same in CSV and Parquet."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from salmacli.engine.scoring import evaluation as module
from salmacli.engine.scoring.evaluation import Evaluation


def evaluation(tag=0, rows=3):
    """An evaluation whose every file tells its tag."""
    frames = pd.DataFrame({"tag": tag, "J": np.linspace(0, 1, rows), "problem": np.full(rows, None, dtype=object)})
    return Evaluation(
        {"tag": tag, "scores": {"J": 0.5}}, frames[["tag", "J"]], frames, texts={"global.csv": f"{tag}\n"}
    )


def tags(folder):
    """The tag of every file."""
    tables = [pd.read_csv(path) for path in folder.glob("per_*.csv")]
    tables += [pd.read_parquet(path) for path in folder.glob("per_*.parquet")]
    assert len(tables) == 4
    return [
        json.loads((folder / "results.json").read_text())["tag"],
        int((folder / "global.csv").read_text()),
        *[tag for table in tables for tag in table["tag"].unique().tolist()],
    ]


def test_all_files_are_written(tmp_path):
    path = evaluation().write(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "results.json"
    names = {entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")}
    assert names == {
        *("per_expression.csv", "per_expression.parquet", "per_frame.csv", "per_frame.parquet"),
        *("global.csv", "results.json"),
    }


def test_files_of_an_evaluation_by_other_rules_do_not_stay(tmp_path):
    frames = pd.DataFrame({"J": [0.5]})
    Evaluation({}, frames, frames, "per_object", {"global_results-val.csv": "x"}).write(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    evaluation().write(tmp_path)
    names = {entry.name for entry in tmp_path.iterdir()}
    assert "per_object.csv" not in names and "global_results-val.csv" not in names
    assert {"per_expression.csv", "notes.txt", "results.json"} <= names


def test_both_forms_of_a_table_hold_the_same(tmp_path):
    rows = pd.DataFrame(
        {
            "text": ['the "red", box', "zwei\nZeilen", "größer", "4"],
            "expression": ["00", "1", "2", "3"],
            "J": [1 / 3, 0.1 + 0.2, np.nan, 1.0],
            "fallback": [None, "no-seg", None, None],
            "answer": [None] * 4,
            "frames": [1, 2, 3, 2**40],
        }
    )
    Evaluation({}, rows, rows, rows_name="per_object").write(tmp_path)
    kinds = {"text": str, "expression": str, "fallback": object, "answer": object}
    for name in ("per_object", "per_frame"):
        csv = pd.read_csv(tmp_path / f"{name}.csv", dtype=kinds, float_precision="round_trip")
        parquet = pd.read_parquet(tmp_path / f"{name}.parquet")
        for table in (csv, parquet):
            assert list(table.columns) == list(rows.columns)
            for column in rows:
                assert table[column].isna().equals(rows[column].isna())
                known = rows[column].notna()
                assert table[column][known].tolist() == rows[column][known].tolist()


def test_what_cannot_be_written_leaves_the_old_files(tmp_path):
    evaluation(1).write(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        Evaluation({"score": float("nan")}, pd.DataFrame(), pd.DataFrame()).write(tmp_path)
    assert set(tags(tmp_path)) == {1}


def test_a_write_that_is_cut_short_leaves_no_results(tmp_path, monkeypatch):
    evaluation(1).write(tmp_path)
    write = module.write_atomic

    def full_disk(path, content):
        if path.name == "per_frame.csv":
            raise OSError("no space left")
        write(path, content)

    monkeypatch.setattr(module, "write_atomic", full_disk)
    with pytest.raises(OSError, match="no space"):
        evaluation(2).write(tmp_path)
    assert not (tmp_path / "results.json").exists()
    monkeypatch.undo()
    evaluation(3).write(tmp_path)
    assert set(tags(tmp_path)) == {3}


def write(folder, tag):
    evaluation(tag, rows=2000 * (1 + tag % 2)).write(folder)


def processes():
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


@pytest.mark.parametrize("pool", [lambda: ThreadPoolExecutor(2), processes], ids=["threads", "processes"])
def test_two_evaluations_at_once_leave_the_files_of_one(pool, tmp_path):
    with pool() as workers:
        for turn in range(0, 12, 2):
            jobs = [workers.submit(write, tmp_path, tag) for tag in (turn, turn + 1)]
            for job in jobs:
                job.result()
            assert len(set(tags(tmp_path))) == 1
