"""Curves: what is read, and that a picture comes out."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from salmacli.errors import DataError, UsageError
from salmacli.report.plots import read_metrics, scores_over_time, threshold_curve, training_curve


def log(path, steps=40, validation=True):
    rng = np.random.default_rng(0)
    lines = []
    for step in range(10, 10 * steps + 1, 10):
        loss = 2 * np.exp(-step / 150) + 0.3 + 0.05 * rng.random()
        line = {"step": step, "loss": loss, "bce": loss / 3, "dice": loss / 2, "lm": loss / 6, "lr": 1e-4}
        line |= {"grad_norm": 1.0, "seconds": step / 10, "bad": 0}
        if validation and step % 100 == 0:
            line["validation_JF"] = 0.7 - loss / 5
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n")
    return path


def size_of(path):
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def test_a_training_curve_with_and_without_validation(tmp_path):
    one = training_curve(log(tmp_path / "metrics.jsonl", validation=False), tmp_path / "one.png")
    two = training_curve(log(tmp_path / "metrics.jsonl"), tmp_path / "two.png")
    assert size_of(one)[0] == size_of(two)[0] == 960
    assert size_of(two)[1] > size_of(one)[1]


def test_metrics_after_a_crash_and_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "loss": 3.0}', '{"step": 2, "loss": 2.0}', '{"step": 2, "loss": 1.5, "x": null}']
    path.write_text("\n".join([*lines, '{"step": 3, "lo']))
    assert read_metrics(path) == {"step": ([1, 2], [1.0, 2.0]), "loss": ([1, 2], [3.0, 1.5])}


def test_metrics_that_cannot_be_drawn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(DataError, match="cannot be read"):
        training_curve(path, tmp_path / "x.png")
    path.write_text('{"step": 1, "loss": 3.0}\nnonsense\n{"step": 3, "loss": 1.0}\n')
    with pytest.raises(DataError, match="broken at line 2"):
        training_curve(path, tmp_path / "x.png")
    path.write_text('{"step": 1, "lr": 3.0}\n')
    with pytest.raises(DataError, match="no loss to draw"):
        training_curve(path, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_a_threshold_curve(tmp_path):
    thresholds = (np.arange(1, 100) / 100).tolist()
    iou = (0.7 - np.square(np.array(thresholds) - 0.42)).tolist()
    dice = (0.8 - np.square(np.array(thresholds) - 0.4)).tolist()
    best = {"iou": {"threshold": 0.42}, "dice": {"threshold": 0.4}}
    record = {
        "thresholds": thresholds,
        "iou": iou,
        "dice": dice,
        "best": best,
        "run": "a",
        "benchmark": "mevis",
    }
    assert size_of(threshold_curve(record, tmp_path / "curve.png")) == (960, 540)


def test_scores_over_time(tmp_path):
    frames = pd.DataFrame(
        {
            "video": ["v", "v", "v", "w"],
            "expression": ["0", "0", "0", "0"],
            "frame": ["00000", "00001", "00002", "00000"],
            "J": [0.5, 0.6, None, 1.0],
            "F": [0.4, 0.9, None, 1.0],
            "problem": [None, None, "size", None],
        }
    )
    path = scores_over_time(frames, "v/0", tmp_path)
    assert path == tmp_path / "over_time" / "v" / "0.png"
    with Image.open(path) as picture:
        assert picture.width > 600
    with pytest.raises(UsageError, match="v/0, w/0"):
        scores_over_time(frames, "v/7", tmp_path)
