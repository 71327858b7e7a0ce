"""``salma eval`` on predictions that exist: every benchmark and protocol, and what it says when something is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from salmacli import launch
from salmacli.cli import main
from salmacli.data.rle import empty
from salmacli.data.synthetic import open_synthetic
from salmacli.engine.run_folder import RunFolder
from salmacli.errors import CheckpointError


@pytest.fixture(autouse=True)
def _synthetic(small_synthetic, monkeypatch, tmp_path):
    monkeypatch.setenv("SALMA_SYNTHETIC", str(small_synthetic))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def perfect(small_synthetic, tmp_path):
    """Writes the truth as predictions; where it is not public, nothing."""

    def write(name):
        benchmark = open_synthetic(name, small_synthetic)
        folder = tmp_path / name.replace("+", "-plus") / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        for video in benchmark.videos:
            size = benchmark.size(video)
            expressions = {}
            for expression in video.expressions:
                truth = benchmark.truth(video, expression) or [empty(*size) for _ in video.frames]
                expressions[expression.id] = {
                    "text": expression.text,
                    "answer": "Sure, [SEG].",
                    "fallback": None,
                    "masks": [one["counts"] for one in truth],
                }
            content = {"schema": 1, "video": video.name, "size": list(size), "frames": list(video.frames)}
            (folder / f"{video.name}.json").write_text(json.dumps({**content, "expressions": expressions}))
        record = {"schema": 1, "benchmark": name, "split": benchmark.split}
        (folder / "prediction.json").write_text(json.dumps(record))
        return folder

    return write


def fails(capsys, arguments, status):
    assert main([str(argument) for argument in arguments]) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("salma: error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("benchmark", "options", "place"),
    [
        ("mevis", [], "mevis"),
        ("mevis", ["--protocol", "v2"], "mevis+v2"),
        ("davis", [], "davis"),
        ("davis", ["--protocol", "annotators"], "davis+annotators"),
        ("revos", [], "revos"),
        ("refcoco", [], "refcoco"),
        ("grefcoco", [], "grefcoco"),
    ],
)
def test_the_truth_scores_all_there_is(perfect, capsys, tmp_path, benchmark, options, place):
    folder = perfect(benchmark)
    assert main(["eval", benchmark, "--predictions", str(folder), *options, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert {metric: results["scores"][metric] for metric in results["metrics"] if "decay" not in metric} == {
        metric: 1.0 for metric in results["metrics"] if "decay" not in metric
    }
    assert results["counts"]["missing"] == results["counts"]["extra"] == 0
    written = tmp_path / place
    assert json.loads((written / "results.json").read_text()) == results
    for name in ("per_expression" if "annotators" not in options else "per_object", "per_frame"):
        table, same = pd.read_csv(written / f"{name}.csv"), pd.read_parquet(written / f"{name}.parquet")
        assert len(table) == len(same) > 0 and list(table.columns) == list(same.columns)


def test_visa_compat_says_both_pairs_of_figures(perfect, capsys):
    folder = perfect("revos")
    assert main(["eval", "revos", "--predictions", str(folder), "--visa-compat"]) == 0
    out = capsys.readouterr().out
    assert "visa-compat" in out and "A (0/1)" in out and "R (0/1)" in out


@pytest.mark.parametrize(
    ("benchmark", "options", "first"),
    [("refytvos", [], "Annotations/"), ("mevis", ["--submission"], "")],
)
def test_submissions(perfect, small_synthetic, capsys, benchmark, options, first):
    folder = perfect(benchmark)
    assert main(["eval", benchmark, "--predictions", str(folder), *options, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    source = open_synthetic(benchmark, small_synthetic)
    video = source.videos[0]
    with zipfile.ZipFile(record["path"]) as archive:
        names = archive.namelist()
    assert f"{first}{video.name}/{video.expressions[0].id}/{video.frames[0]}.png" in names
    assert len(names) == sum(len(one.frames) * len(one.expressions) for one in source.videos) == record["masks"]
    assert main(["eval", benchmark, "--predictions", str(folder), *options]) == 0
    assert "read back and complete" in capsys.readouterr().out


@pytest.mark.parametrize("scoring", ["semi-supervised", "unsupervised"])
def test_label_folders(tmp_path, capsys, scoring):
    labels = np.zeros((4, 30, 40), dtype=np.uint8)
    labels[:, 5:15, 5:15], labels[:, 18:28, 20:35] = 1, 2
    for folder, pictures in (("true", labels), ("predicted", np.where(labels == 2, 0, labels).astype(np.uint8))):
        (tmp_path / folder / "cat").mkdir(parents=True)
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / folder / "cat" / f"{number:05d}.png")
    command = ["eval", "davis", "--truth", "true", "--predictions", "predicted", "--scoring", scoring]
    assert main([*command, "--worst", "1", "--plot", "cat/2"]) == 0
    out = capsys.readouterr()
    assert "cat 2" in out.out and "50.0" in out.out and "1 worst" in out.out
    place = tmp_path / ("predicted-scores" if scoring == "semi-supervised" else "predicted-scores+unsupervised")
    assert (place / "global_results-val.csv").read_text().splitlines()[1].startswith("0.500,0.500,0.500,0.000")
    assert (place / "over_time" / "cat" / "2.png").is_file() and "over_time" in out.err
    assert json.loads((place / "results.json").read_text())["protocol"]["name"] == scoring


def test_what_is_missing_is_named_and_worth_what_the_user_says(perfect, capsys):
    folder = perfect("mevis")
    gone = sorted(folder.glob("*.json"))[0]
    gone.unlink()
    line = fails(capsys, ["eval", "mevis", "--predictions", folder], 4)
    assert gone.stem in line and "video missing" in line and "--missing zero" in line
    scores = {}
    for missing in ("zero", "drop"):
        assert main(["eval", "mevis", "--predictions", str(folder), "--missing", missing, "--json"]) == 0
        results = json.loads(capsys.readouterr().out)
        assert results["counts"]["problems"] == {"video": results["counts"]["missing"]}
        scores[missing] = results["scores"]["JF"]
    assert scores["zero"] < scores["drop"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["mevis", "--protocol", "v3"], 2, ["v3", "v1, v2"]),
        (["mevis", "--visa-compat"], 2, ["--visa-compat", "revos"]),
        (["davis", "--scoring", "unsupervised"], 2, ["--truth"]),
        (["davis", "--scoring", "loose"], 2, ["loose", "semi-supervised"]),
        (["davis", "--truth", "nowhere", "--predictions", "nowhere"], 4, ["nowhere"]),
        (["mevis", "--submission", "--missing", "zero", "--predictions", "."], 2, ["--missing", "zip"]),
        (["mevis", "--predictions", "x", "--run", "y"], 2, ["--run"]),
        (["mevis", "--predictions", "x", "--fallback", "prior"], 2, ["--predictions", "settings"]),
        (["mevis", "--predictions", "x", "--set", "window=64"], 2, ["--predictions", "settings"]),
        (["mevis", "--predictions", "x", "--precision", "fp32"], 2, ["--predictions", "settings"]),
        (["mevis", "--predictions", "x", "--num-gpus", "2"], 2, ["--num-gpus"]),
        (["mevis", "--num-gpus", "0"], 2, ["--num-gpus", "or equal to 1"]),
        (["mevis", "--fallback", "before"], 2, ["--fallback", "force-seg"]),
        (["mevis", "--set", "windw=3", "--set", "memories=0"], 3, ["windw", "window", "memories = 0"]),
        (["mevis", "--set", "window"], 2, ["--set", "KEY=VALUE"]),
        (["mevis", "--mode", "sa2va", "--set", "choice=uniform"], 3, ["choice = uniform", "sa2va"]),
        (["davis", "--truth", ".", "--predictions", ".", "--set", "window=9"], 2, ["--truth"]),
        (["mevis", "--run", "x", "--checkpoint", "y"], 2, ["--run"]),
        (["mevis", "--worst", "-1"], 2, ["--worst"]),
        (["mevis", "--worst", "3", "--json"], 2, ["--worst", "--json"]),
        (["refytvos", "--worst", "3", "--predictions", "."], 2, ["refytvos valid", "--worst"]),
        (["davis", "--truth", ".", "--predictions", ".", "--visa-compat"], 2, ["--truth"]),
        (["revos", "--submission", "--predictions", "."], 2, ["revos"]),
    ],
)
def test_wrong_calls_get_one_line(capsys, arguments, status, words):
    line = fails(capsys, ["eval", *arguments], status)
    assert all(word in line for word in words), line


def test_a_case_that_does_not_exist(perfect, capsys, tmp_path):
    line = fails(capsys, ["eval", "mevis", "--predictions", perfect("mevis"), "--plot", "nobody/0"], 2)
    assert "nobody/0" in line
    assert not (tmp_path / "mevis" / "results.json").exists()
    video = next(path.stem for path in sorted((tmp_path / "mevis" / "predictions").glob("h*.json")))
    command = ["eval", "mevis", "--predictions", tmp_path / "mevis" / "predictions", "--plot", f"{video}/nobody"]
    assert "one of" in fails(capsys, command, 2)


def test_a_worker_that_dies_fails_the_run(perfect, capsys, monkeypatch):
    def die(*_):
        raise RuntimeError("the worker is gone")

    folder = perfect("mevis")
    monkeypatch.setattr("salmacli.engine.scoring.counting.count", die)
    assert "the worker is gone" in fails(capsys, ["eval", "mevis", "--predictions", folder], 1)
    assert not (folder.parent / "results.json").exists()


def test_folders_of_whatever_name_keep_their_scores_apart(perfect, tmp_path, capsys):
    folder = perfect("mevis")
    for name in ("epoch1.5", "epoch1.6", "mine/predictions"):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        (copy / "prediction.json").unlink()
        (copy / "notes.json").write_text("{}")  # not ours, and no video
        assert main(["eval", "mevis", "--predictions", str(copy), "--json"]) == 0
        results = json.loads(capsys.readouterr().out)
        assert results["extra"] == [{"where": "notes", "masks": 1}]
        assert json.loads((copy.parent / f"{copy.name}-scores" / "results.json").read_text()) == results


def test_without_a_place_to_keep_what_is_compiled(perfect, capsys, monkeypatch):
    compiled = pytest.importorskip("salmacli.metrics.kernels.compiled")
    monkeypatch.setattr(compiled, "count", SimpleNamespace(stats=SimpleNamespace(cache_path=None)))
    assert main(["eval", "mevis", "--predictions", str(perfect("mevis"))]) == 0
    assert "once on this machine" in capsys.readouterr().err


def test_results_go_nowhere_that_they_would_harm(perfect, capsys, tmp_path):
    folder = perfect("mevis")
    (tmp_path / "file").write_text("")
    for out in (folder, folder / "scores", tmp_path / "file", tmp_path / "file" / "below"):
        line = fails(capsys, ["eval", "mevis", "--predictions", folder, "--out", out], 2)
        assert "--out" in line
    assert sorted(path.suffix for path in folder.iterdir()) == [".json"] * len(list(folder.iterdir()))


def test_predictions_of_other_videos_are_no_predictions(perfect, capsys, tmp_path):
    (tmp_path / "above" / "mevis").mkdir(parents=True)
    for missing in ("error", "zero"):
        line = fails(capsys, ["eval", "mevis", "--predictions", tmp_path / "above", "--missing", missing], 4)
        assert "none of the" in line


def test_halves_of_characters_are_escaped_and_keys_come_once(perfect, capsys, tmp_path):
    folder = perfect("mevis")
    path = sorted(folder.glob("h*.json"))[0]
    content = json.loads(path.read_text())
    first = next(iter(content["expressions"].values()))
    first["answer"] = "half \ud800"
    path.write_text(json.dumps(content))
    (folder / "extra \udcff.json").write_text("{}")
    assert main(["eval", "mevis", "--predictions", str(folder), "--json"]) == 0
    assert "udcff" in capsys.readouterr().out
    assert "ud800" in pd.read_csv(tmp_path / "mevis" / "per_expression.csv")["answer"].iloc[0]
    path.write_text(path.read_text().replace('"video"', '"video": "x", "video"', 1))
    assert "twice" in fails(capsys, ["eval", "mevis", "--predictions", folder], 4)


def test_scores_of_predictions_need_no_torch(perfect):
    """Where they are scored there may be none."""
    folder = perfect("mevis")
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'accelerate', 'sam2')));"
        f"from salmacli.cli import main; sys.exit(main(['eval', 'mevis', '--predictions', {str(folder)!r}]))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=100)


@pytest.fixture
def run(run_checkpoint, monkeypatch):
    """A run whose model is from scratch, in a process that no launcher started."""
    for name in ("RANK", "WORLD_SIZE", launch.WORKER):
        monkeypatch.delenv(name, raising=False)
    return RunFolder.create(run_checkpoint.parents[2], "first", {})


def broken_frame(small_synthetic, root):
    """A copy of the benchmark with one frame that cannot be read: the video's name, the frame, and its bytes."""
    shutil.copytree(small_synthetic / "mevis", root)
    benchmark = open_synthetic("mevis", small_synthetic)
    video = benchmark.videos[0]
    path = root / benchmark.frame_path(video, video.frames[2]).relative_to(benchmark.root)
    good = path.read_bytes()
    path.write_bytes(good[:60])
    return video.name, path, good


def test_a_broken_frame_is_named_at_the_end_and_only_its_video_is_predicted_again(
    run, small_synthetic, capsys, tmp_path
):
    name, path, good = broken_frame(small_synthetic, tmp_path / "data")
    command = ["eval", "mevis", "--data", tmp_path / "data", "--fallback", "force-seg"]
    line = fails(capsys, command, 4)
    assert "1 videos of mevis could not be predicted" in line and name in line and path.name in line
    folder = run.path / "eval" / "mevis" / "frames+fallback=force-seg"
    times = {file.name: file.stat().st_mtime_ns for file in (folder / "predictions").glob("h*.json")}
    assert len(times) == 1 and not (folder / "results.json").exists()
    path.write_bytes(good)
    assert main([str(word) for word in command]) == 0
    assert "(12 filled by: force-seg)" not in capsys.readouterr().out
    again = {file.name: file.stat().st_mtime_ns for file in (folder / "predictions").glob("h*.json")}
    assert len(again) == 2 and times.items() <= again.items()
    results = json.loads((folder / "results.json").read_text())
    assert results["settings"] == {"fallback": "force-seg"} and results["counts"]["fallback"] == "force-seg"
    assert results["run"] == "first" and results["mode"] == "frames" and results["checkpoint"]["step"] == 7


def test_without_a_run_no_data_is_made_first(capsys, monkeypatch):
    monkeypatch.setattr("salmacli.engine.sources.open_source", lambda *_: pytest.fail("the data came first"))
    assert "run" in fails(capsys, ["eval", "mevis"], 4)
    assert "both" in fails(capsys, ["eval", "mevis", "--run", "a", "--checkpoint", "b"], 2)


def test_a_worker_that_is_interrupted_says_nothing(run, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("salmacli.engine.prediction.benchmark.predict_benchmark", interrupted)
    assert "interrupted" in fails(capsys, ["eval", "mevis"], 130)
    monkeypatch.setenv(launch.WORKER, "1")
    assert main(["eval", "mevis"]) == 130
    assert "interrupted" not in capsys.readouterr().err


@pytest.fixture
def relaunched(monkeypatch):
    """Runs one worker, in this process, where `relaunch` would start several; what it was called with."""
    calls = []

    def relaunch(num_gpus, argv):
        calls.append((num_gpus, argv))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(launch.WORKER, "1")
            assert main(list(argv)) == 0

    monkeypatch.setattr(launch, "relaunch", relaunch)
    return calls


@pytest.mark.slow
def test_workers_predict_and_the_one_who_started_them_scores(run, relaunched, capsys, tmp_path):
    options = [
        "--set",
        "window=8",
        "--fallback",
        "force-seg",
        "--mode",
        "consistent",
        "--out",
        str(tmp_path / "scores"),
    ]
    assert main(["eval", "mevis", "--num-gpus", "2", *options, "--json"]) == 0
    out = capsys.readouterr()
    results = json.loads(out.out)
    assert results["settings"] == {"fallback": "force-seg", "window": 8} and results["mode"] == "consistent"
    assert out.err.count("run:") == out.err.count("data:") == 1
    (call,) = relaunched
    assert call[0] == 2 and "--out" not in call[1] and call[1][2:4] == ["--run", "runs/first"]
    assert (run.path / "eval" / "mevis" / "consistent+fallback=force-seg+window=8" / "predictions").is_dir()
    alone = tmp_path / "alone"
    assert main(["eval", "mevis", *options[:-1], str(alone), "--json"]) == 0
    assert {**json.loads(capsys.readouterr().out), "created": ""} == {**results, "created": ""}


@pytest.mark.slow
def test_what_workers_could_not_predict_ends_with_the_right_code(run, relaunched, small_synthetic, capsys, tmp_path):
    name, _, _ = broken_frame(small_synthetic, tmp_path / "data")
    line = fails(
        capsys, ["eval", "mevis", "--data", tmp_path / "data", "--fallback", "force-seg", "--num-gpus", "2"], 4
    )
    assert name in line and len(relaunched) == 1


def test_under_a_launcher_only_the_main_process_speaks_and_scores(run, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    done = []
    monkeypatch.setattr("salmacli.engine.prediction.benchmark.predict_benchmark", lambda job, **_: done.append(job))
    assert main(["eval", "mevis"]) == 0
    assert len(done) == 1 and not (done[0].folder.parent / "results.json").exists()

    def fail(*_, **__):
        raise CheckpointError("a tensor is missing")

    monkeypatch.setattr("salmacli.engine.prediction.benchmark.predict_benchmark", fail)
    assert main(["eval", "mevis"]) == 4
    out = capsys.readouterr()
    assert out.out == out.err == ""
    assert "--num-gpus" in fails(capsys, ["eval", "mevis", "--num-gpus", "2"], 2)
    monkeypatch.setenv("RANK", "0")
    assert "a tensor is missing" in fails(capsys, ["eval", "mevis"], 4)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's store on Windows needs libuv")
@pytest.mark.parametrize("launcher", ["--num-gpus", "torchrun"])
def test_two_processes_leave_the_same_bytes_as_one(run, small_synthetic, tmp_path, monkeypatch, launcher):
    """The real thing, with logits, a fall-back and six videos."""
    monkeypatch.setenv("SALMA_SYNTHETIC", str(small_synthetic))
    options = ["mevis", "--split", "train", "--fallback", "force-seg", "--save-logits", "--out"]
    folder = run.path / "eval" / "mevis" / "frames+fallback=force-seg" / "predictions"

    def files(place):
        return {path.name: path.read_bytes() for path in place.iterdir()}

    assert main(["eval", *options, str(tmp_path / "one")]) == 0
    one = files(folder)
    shutil.rmtree(folder)
    start = [sys.executable, "-m"]
    if launcher == "torchrun":
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    several = ["--num-gpus", "2"] if launcher == "--num-gpus" else []
    words = [*start, "salmacli", "eval", *several, *options, str(tmp_path / "two")]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=300)
    assert "process 1 of 2" in done.stderr and done.stderr.count("written:") == 1
    assert files(folder) == one
    for name in ("per_expression.csv", "per_frame.csv", "results.json"):
        texts = [(tmp_path / which / name).read_text().splitlines() for which in ("one", "two")]
        assert [line for line in texts[0] if '"created"' not in line] == [
            line for line in texts[1] if '"created"' not in line
        ]
