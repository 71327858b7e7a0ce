"""The main path as a user types it: train, evaluate, predict; and what it says when something is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salmacli.cli import main

SMALL = [
    *("--cma", "--topk", "2", "--steps", "2", "--name", "first"),
    *(
        "--set",
        "model.sam2.image_size=64",
        "--set",
        "train.batch_size=2",
        "--set",
        "train.log_every=1",
        "--set",
        "data.workers=0",
    ),
]


@pytest.fixture(scope="module")
def place(small_synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with one trained run."""
    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SALMA_SYNTHETIC", str(small_synthetic))
        assert main(["train", *SMALL]) == 0
    return folder


@pytest.fixture(autouse=True)
def _inside(place: Path, small_synthetic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("SALMA_SYNTHETIC", str(small_synthetic))


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int) -> str:
    """Run a command that must fail with `status` and one line; that line."""
    assert main(arguments) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("salma: error:")]
    assert len(lines) == 1
    return lines[0]


def test_the_run_folder_keeps_its_contract(place):
    run = place / "runs" / "first"
    record = json.loads((run / "run.json").read_text())
    assert record["config"]["model"]["cma"] == {**record["config"]["model"]["cma"], "enabled": True, "topk": 2}
    assert record["versions"]["torch"] and record["seed"] == 0 and record["command"]
    assert [entry["set"] for entry in record["data"]] == ["mevis", "revos"] and record["data"][0]["sha256"]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert (run / "curve.png").stat().st_size > 1000 and "step 2" in (run / "logs" / "rank0.log").read_text()
    assert (run / "checkpoints" / "step-2" / "model.safetensors").exists()


@pytest.mark.parametrize("benchmark", ["mevis", "davis", "revos", "grefcoco"])
def test_eval_of_every_benchmark(place, capsys, benchmark):
    assert main(["eval", benchmark, "--json"]) == 0
    out = capsys.readouterr()
    results = json.loads(out.out)
    assert results["schema"] == 1 and results["benchmark"] == benchmark and results["run"] == "first"
    assert results["synthetic"] is True and "synthetic" in out.err and "newest" in out.err
    assert 0 <= results["scores"][results["metrics"][0]] <= 1 and results["config"]["cma"] is True
    folder = place / "runs" / "first" / "eval" / benchmark / "frames"
    assert json.loads((folder / "results.json").read_text()) == results
    # The predictions are the border: scoring them again, without a model, gives the same.
    assert main(["eval", benchmark, "--predictions", str(folder / "predictions"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["scores"] == results["scores"] and again["counts"] == results["counts"]


def test_predict_writes_masks_a_picture_and_a_video(place, shared_data, capsys, tmp_path):
    import av

    frames = sorted((shared_data / "real_frames").glob("*.jpg"))[:3]
    for frame in frames:
        shutil.copy(frame, tmp_path)
    out = place / "out"
    assert main(["predict", str(tmp_path), "--text", "the child who jumps", "--out", str(out), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["expressions"]
    masks = sorted((Path(row["folder"]) / "masks").glob("*.png"))
    assert [mask.stem for mask in masks] == [frame.stem for frame in frames]
    assert np.asarray(Image.open(masks[0])).shape == (540, 960)
    assert Image.open(Path(row["folder"]) / "overlay.png").size[0] > 500
    with av.open(str(Path(row["folder"]) / "overlay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 3
    again = ["predict", str(tmp_path), "--text", "the child who jumps", "--out", str(out)]
    assert "--force" in fails(capsys, again, 2)


def test_resume_of_a_finished_run_says_so_and_changes_nothing(place, capsys):
    assert main(["train", "--resume", "--name", "first", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2


def test_a_run_goes_on_only_with_its_own_data(place, capsys):
    record = place / "runs" / "first" / "run.json"
    whole = record.read_text()
    changed = json.loads(whole)
    changed["data"][0]["sha256"] = "0"
    record.write_text(json.dumps(changed))
    try:
        assert "changed" in fails(capsys, ["train", "--resume", "--name", "first"], 4)
    finally:
        record.write_text(whole)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["train", "--topkk", "2"], 2, ["--topk", "salma train --help"]),
        (["train", "--topk", "two"], 2, ["--topk", "integer"]),
        (["train", "--preset", "huge"], 2, ["huge", "tiny"]),
        (["train", "--topk", "0"], 3, ["model.cma.topk = 0"]),
        (["train", "--set", "train.stepz=3"], 3, ["train.stepz", "steps"]),
        (["train", "--mba", "gates"], 3, ["model.cma.mba"]),
        (["train", "--resume", "--topk", "3"], 2, ["--resume"]),
        (["train", "--resume", "--name", "nobody"], 4, ["nobody"]),
        (["train", "--set", "data.train=[{set: mevis, root: nowhere}]"], 4, ["nowhere"]),
        (["eval", "coco"], 2, ["coco"]),
        (["eval", "mevis", "--data", "nowhere"], 4, ["nowhere"]),
        (["eval", "mevis", "--run", "nowhere"], 4, ["nowhere"]),
        (["eval", "mevis", "--predictions", "nowhere"], 4, ["nowhere"]),
        (["eval", "mevis", "--truth", "nowhere"], 2, ["--truth"]),
        (["predict", "nowhere", "--text", "a dog"], 4, ["nowhere"]),
        (["predict", "nowhere"], 2, ["--text"]),
    ],
)
def test_wrong_calls_get_one_line(place, capsys, arguments, status, words):
    line = fails(capsys, arguments, status)
    assert all(word in line for word in words), line


def test_broken_files_are_named(place, capsys, small_synthetic, tmp_path, shared_data):
    benchmark = tmp_path / "mevis"
    shutil.copytree(small_synthetic / "mevis", benchmark)
    meta = benchmark / "valid_u" / "meta_expressions.json"
    whole = meta.read_text()
    meta.write_text(whole[: len(whole) // 2])
    line = fails(capsys, ["eval", "mevis", "--data", str(benchmark)], 4)
    assert "meta_expressions.json" in line and "line" in line
    meta.write_text(whole)
    frame = sorted(benchmark.glob("valid_u/JPEGImages/*/*.jpg"))[0]
    frame.write_bytes(frame.read_bytes()[:300])
    line = fails(
        capsys, ["eval", "mevis", "--data", str(benchmark), "--checkpoint", "runs/first/checkpoints/step-2"], 4
    )
    assert frame.name in line
    line = fails(capsys, ["eval", "mevis", "--checkpoint", str(shared_data / "parity")], 4)
    assert "Sa2VA" in line
