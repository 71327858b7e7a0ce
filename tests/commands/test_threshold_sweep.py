"""``salma threshold-sweep`` as a user calls it, on fabricated logits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from salmacli.commands.threshold_sweep import threshold_sweep
from salmacli.data.records import Expression, Video
from salmacli.data.rle import encode
from salmacli.engine.run_folder import RunFolder
from salmacli.errors import DataError
from salmacli.metrics.bits import Bits

app = typer.Typer()
app.command()(threshold_sweep)


def call(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


class Benchmark:
    name, split, root, synthetic, public = "mevis", "valid_u", Path("nowhere"), True, True
    videos = tuple(Video(f"v{v}", ("0", "1"), (Expression("e", f"the box {v}", ("0",)),)) for v in range(4))

    def mask(self, video):
        mask = np.zeros((2, 24, 32), dtype=bool)
        start = int(video.name[1:])
        mask[:, 4:16, 4 + 2 * start : 18 + 2 * start] = True
        return mask

    def truth_bits(self, video, expression):
        return [Bits.of_mask(mask) for mask in self.mask(video)]


def predict(folder, benchmark):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for video in benchmark.videos:
        truth = benchmark.mask(video)
        logits = (truth * 4.0 - 2.8 + rng.normal(size=truth.shape)).astype(np.float32)
        np.savez_compressed(folder / f"{video.name}.npz", e=logits)
        expression = {
            "text": video.expressions[0].text,
            "answer": "",
            "fallback": None,
            "masks": [encode(frame > 0)["counts"] for frame in logits],
        }
        content = {"schema": 1, "video": video.name, "size": [24, 32], "frames": ["0", "1"]}
        (folder / f"{video.name}.json").write_text(json.dumps({**content, "expressions": {"e": expression}}))
    about = {
        "schema": 1,
        "benchmark": "mevis",
        "split": "valid_u",
        "mode": "frames",
        "checkpoint": {"step": 20},
    }
    (folder / "prediction.json").write_text(json.dumps(about))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("salmacli.engine.sources.open_source", lambda *_: Benchmark())
    run = RunFolder.create("runs", "a", {"config": {"model": {"inference_mode": "frames"}}})
    (run.path / "checkpoints" / "step-20").mkdir(parents=True)
    return run


def test_saved_logits_give_table_curve_and_file(run):
    folder = run.eval_folder("mevis", "frames")
    predict(folder / "predictions", Benchmark())
    found = call()
    assert "run: runs" in found.stderr
    assert "(the newest)" in found.stderr
    assert "synthetic" in found.stderr
    assert "best IoU" in found.stdout
    assert "held out (4 folds over videos" in found.stdout
    record = json.loads((folder / "threshold_sweep.json").read_text())
    assert record["best"]["iou"]["threshold"] < 0.5
    assert record["best"]["iou"]["score"] > record["iou"][49]
    assert (record["run"], record["synthetic"], record["checkpoint"]) == ("a", True, {"step": 20})
    assert (folder / "threshold_sweep.png").stat().st_size > 1000


def test_json_and_the_number_of_thresholds(run):
    predict(run.eval_folder("mevis", "frames") / "predictions", Benchmark())
    record = json.loads(call("--json", "--run", "a", "--thresholds", 3, "--mode", "frames").stdout)
    assert record["thresholds"] == [0.25, 0.5, 0.75]
    assert call("--thresholds", 0).exit_code == 2


def test_missing_logits_are_predicted_and_said(run, monkeypatch):
    asked = []

    def ensure_predictions(run, benchmark, settings, *, save_logits, progress):
        asked.append((run.name, benchmark.name, settings.window, save_logits))
        folder = run.eval_folder("mevis", f"frames+window={settings.window}" if settings.window else "frames")
        folder /= "predictions"
        predict(folder, benchmark)
        return folder, {}

    # The real one would load torch and a model; what is tested is that it is asked, and how.
    predictor = ModuleType("salmacli.engine.prediction.benchmark")
    predictor.ensure_predictions = ensure_predictions
    monkeypatch.setitem(sys.modules, predictor.__name__, predictor)
    found = call()
    assert asked == [("a", "mevis", None, True)]
    assert "no saved logits of the newest checkpoint" in found.stderr
    call()
    assert len(asked) == 1
    for _ in range(2):  # another way to predict has another folder
        call("--set", "window=64", "--fallback", "none")
        assert asked[1:] == [("a", "mevis", 64, True)]
    assert (run.eval_folder("mevis", "frames+window=64") / "threshold_sweep.json").exists()


def test_without_a_run_it_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="salma train"):
        call()
    with pytest.raises(DataError, match="nothing is not a run"):
        call("--run", "nothing")


def test_a_split_without_public_truth_is_refused_before_it_is_predicted(run, monkeypatch):
    monkeypatch.setattr(Benchmark, "public", False)
    with pytest.raises(DataError, match="no public truth"):
        call()
