"""A benchmark is predicted whole: once, in whatever pieces, by whatever process, and nothing is silent."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from salmacli.checkpoints.load import load_checkpoint
from salmacli.config.loading import load_config
from salmacli.config.schema import PredictConfig
from salmacli.data.rle import decode
from salmacli.data.synthetic import open_synthetic
from salmacli.engine.prediction.benchmark import ensure_predictions, load_model, plan, predict_benchmark
from salmacli.engine.prediction.folder import claim, read_record, refuse_failed
from salmacli.engine.prediction.predictor import Predictor
from salmacli.engine.prediction.shares import Group
from salmacli.engine.progress import Silent
from salmacli.engine.run_folder import RunFolder
from salmacli.engine.scoring.own_predictions import OwnPredictions
from salmacli.errors import CheckpointError, ConfigError, DataError, SalmaError, UsageError


class Loader:
    """Hands out a predictor and counts how often."""

    def __init__(self, predictor):
        self.predictor, self.calls = predictor, []

    def __call__(self, checkpoint, settings, device, progress):
        self.calls.append((checkpoint, settings, device.type))
        return self.predictor


@pytest.fixture
def load(quick):
    return Loader(quick)


def record_of(job):
    return json.loads((job.folder / "prediction.json").read_text())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_record_says_what_makes_the_predictions(make_job, benchmark, load):
    job = make_job("window=64", "readers=2", fallback="previous")
    predict_benchmark(job, load=load)
    record = record_of(job)
    assert job.folder.parts[-4:] == ("eval", "mevis", "frames+fallback=previous+window=64", "predictions")
    assert (record["benchmark"], record["split"], record["mode"]) == ("mevis", "valid_u", "frames")
    assert record["complete"] is True and record["synthetic"] is True and "failed" not in record
    assert record["checkpoint"].keys() == {"path", "step", "sha256"}
    assert record["settings"] == {"fallback": "previous", "window": 64}
    assert record["resolved"]["precision"] == ("bf16" if torch.cuda.is_available() else "fp32")
    assert (record["resolved"]["key_frames"], record["resolved"]["choice"]) == (4, "uniform")
    assert record["speed"]["readers"] == 2 and "readers" not in record["resolved"]
    assert {path.stem for path in job.folder.glob("*.json")} == {v.name for v in benchmark.videos} | {"prediction"}
    assert job.origin() == {"run": None, "config": {"cma": False, "topk": 2, "mba": "gate", "seed": 3}}
    assert "by_side" not in record
    other = make_job(mode="sa2va")
    predict_benchmark(other, load=load)
    assert record_of(other)["by_side"] == other.model.sam2.image_size


def test_what_is_done_is_not_done_again_and_needs_no_model(make_job, benchmark, load, listener):
    job = make_job()
    predict_benchmark(job, load=load)
    whole = contents(job.folder)
    first = benchmark.videos[0]
    predict_benchmark(make_job("readers=1", "compile=true", where="checkpoint"), load=load, progress=listener)
    assert len(load.calls) == 1 and listener.tasks == []
    (job.folder / f"{first.name}.json").unlink()
    predict_benchmark(job, load=load, progress=listener)
    frames = sum(len(video.frames) for video in benchmark.videos)
    assert listener.tasks == [("predicting mevis, frames", frames, frames - len(first.frames))]
    assert listener.done == frames and len(load.calls) == 2
    assert contents(job.folder) == whole


def test_logits_that_are_asked_for_later_are_made(make_job, benchmark, load):
    job = make_job()
    predict_benchmark(job, load=load)
    masks = {name: data for name, data in contents(job.folder).items() if name != "prediction.json"}
    predict_benchmark(job, load=load, save_logits=True)
    after = contents(job.folder)
    assert len(load.calls) == 2 and {f"{video.name}.npz" for video in benchmark.videos} <= after.keys()
    assert {name: after[name] for name in masks} == masks
    predict_benchmark(job, load=load, save_logits=True)
    predict_benchmark(job, load=load)
    assert len(load.calls) == 2


def test_an_interrupted_prediction_goes_on_and_ends_the_same(make_job, benchmark, load, quick, monkeypatch):
    whole, cut = make_job(where="whole"), make_job(where="cut")
    predict_benchmark(whole, load=load, save_logits=True)
    original, calls = type(quick).video, []

    def dies(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(type(quick), "video", dies)
    with pytest.raises(KeyboardInterrupt):
        predict_benchmark(cut, load=load, save_logits=True)
    assert record_of(cut)["complete"] is False
    predict_benchmark(cut, load=load, save_logits=True)
    assert len(calls) == 2 + len(benchmark.videos) - 1, "the first video was not predicted again"
    ours, theirs = contents(cut.folder), contents(whole.folder)
    ours.pop("prediction.json"), theirs.pop("prediction.json")  # they say where the checkpoint lies
    assert ours == theirs


@pytest.mark.parametrize("change", ["checkpoint", "settings", "data"])
def test_predictions_of_something_else_are_set_aside_and_said(make_job, benchmark, load, listener, change):
    job = make_job(precision="fp32")
    predict_benchmark(job, load=load)
    if change == "checkpoint":
        other = make_job(precision="fp32", weights="others")
    elif change == "data":
        benchmark.videos = benchmark.videos[:1]
        other = make_job(precision="fp32")
    else:  # of a version with other settings
        record = record_of(job)
        record["resolved"]["max_new_tokens"] = 32
        (job.folder / "prediction.json").write_text(json.dumps(record))
        other = job
    predict_benchmark(other, load=load, progress=listener)
    assert (job.folder.parent / "predictions.old-1").is_dir() and "in predictions.old-1" not in listener.said[0]
    assert "another checkpoint, split, data, settings" in listener.said[0] and record_of(job)["complete"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_who_loses_the_folder_to_another_evaluation_stops(make_job, train_split, quick, monkeypatch, ranks):
    """Another checkpoint's evaluation comes while the second video of one process is predicted."""
    ours = make_job(of=train_split, precision="fp32")
    meeting, original, calls = InThreads(ranks, monkeypatch), type(quick).video, []

    def video(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            claim(ours.folder, {**read_record(ours.folder), "data": "other"}, Silent())
        return original(self, *arguments, **options)

    monkeypatch.setattr(type(quick), "video", video)
    said = meeting(lambda rank: predict_benchmark(ours, load=Loader(quick)))
    assert all(isinstance(error, DataError) and "another `salma eval` has taken" in str(error) for error in said)
    assert len(said) == ranks
    if ranks == 1:  # another one may be amid writing
        assert [path.name for path in ours.folder.iterdir()] == ["prediction.json"]
    assert record_of(ours)["data"] == "other" and record_of(ours)["complete"] is False


def test_who_loses_the_folder_at_the_very_end_does_not_write_its_record(make_job, train_split, quick, monkeypatch):
    job = make_job(of=train_split)
    predict_benchmark(job, load=Loader(quick))

    def claims(folder, record, progress):
        claim(folder, {**record, "data": "other"}, progress)

    monkeypatch.setattr("salmacli.engine.prediction.benchmark.claim", claims)
    monkeypatch.setattr("salmacli.engine.prediction.benchmark.done", lambda *_: True)
    said = InThreads(2, monkeypatch)(lambda rank: predict_benchmark(job, load=Loader(quick)))
    assert ["has taken" in str(error) for error in said] == [True, True] and not record_of(job)["complete"]


def test_a_truncated_video_is_predicted_again(make_job, benchmark, load):
    job = make_job()
    predict_benchmark(job, load=load)
    whole, path = contents(job.folder), job.folder / f"{benchmark.videos[0].name}.json"
    path.write_bytes(path.read_bytes()[:100])
    predict_benchmark(job, load=load)
    assert contents(job.folder) == whole and len(load.calls) == 2


def test_where_the_checkpoint_lies_does_not_matter(make_job, load, tmp_path):
    job = make_job()
    predict_benchmark(job, load=load)
    shutil.move(tmp_path / "checkpoint", tmp_path / "moved")
    predict_benchmark(make_job(where="moved"), load=load)
    assert len(load.calls) == 1 and not (tmp_path / "moved/eval/mevis/frames/predictions.old-1").exists()


def test_what_was_begun_in_one_precision_goes_on_in_it(make_job, benchmark, load, listener):
    """As on a machine with a GPU that is gone today."""
    job = make_job()
    predict_benchmark(job, load=load)
    record = record_of(job)
    record["resolved"]["precision"] = other = {"fp32": "bf16", "bf16": "fp32"}[record["resolved"]["precision"]]
    (job.folder / "prediction.json").write_text(json.dumps(record))
    (job.folder / f"{benchmark.videos[0].name}.json").unlink()
    predict_benchmark(job, load=load, progress=listener)
    assert load.calls[-1][1].precision == other and f"going on in {other}" in listener.said[0]
    assert record_of(job)["resolved"]["precision"] == other
    explicit = make_job(precision="fp32")
    assert explicit.folder.parent.name == "frames+precision=fp32"


def test_an_unreadable_frame_costs_its_video_and_nothing_else(make_job, small_synthetic, load, listener, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(small_synthetic, root)
    benchmark = open_synthetic("mevis", root, "valid_u")
    job = make_job(of=benchmark)
    first = benchmark.videos[0]
    path = benchmark.frame_path(first, first.frames[1])
    good = path.read_bytes()
    path.write_bytes(good[:50])
    predict_benchmark(job, load=load, progress=listener)
    with pytest.raises(
        DataError, match=f"1 videos of mevis could not be predicted: {first.name} .*{path.name}"
    ) as error:
        refuse_failed(job.folder, "mevis")
    assert error.value.exit_code == 4 and record_of(job)["complete"] is False
    assert any(first.name in said and path.name in said for said in listener.said)
    assert listener.done == sum(len(video.frames) for video in benchmark.videos)
    there = {path.stem for path in job.folder.glob("*.json")} - {"prediction"}
    assert there == {video.name for video in benchmark.videos} - {first.name}
    path.write_bytes(good)
    predict_benchmark(job, load=load, progress=listener)
    refuse_failed(job.folder, "mevis")
    assert listener.tasks[-1][1] - listener.tasks[-1][2] == len(first.frames)
    assert record_of(job)["complete"] is True


def test_a_video_that_no_memory_holds_costs_itself(make_job, benchmark, load, quick, monkeypatch):
    original, longest = type(quick).video, benchmark.videos[0].expressions[0].text

    def video(self, frames, texts, **options):
        if texts[0] == longest:
            raise SalmaError("memory does not hold even one of the frames at a time")
        return original(self, frames, texts, **options)

    monkeypatch.setattr(type(quick), "video", video)
    job = make_job()
    predict_benchmark(job, load=load)
    assert list(record_of(job)["failed"]) == [benchmark.videos[0].name]


def test_empty_expressions_are_found_before_anything_is_predicted(benchmark, run_checkpoint):
    first = benchmark.videos[0]
    expressions = (replace(first.expressions[0], text=" \n"), *first.expressions[1:])
    benchmark.videos = (replace(first, expressions=expressions), *benchmark.videos[1:])
    with pytest.raises(DataError, match=f"1 expressions of mevis valid_u .* are empty: {first.name}/"):
        plan(None, benchmark, PredictConfig(), run_checkpoint)


def test_a_plan_is_made_without_the_model(benchmark, run_checkpoint, monkeypatch):
    monkeypatch.setattr("salmacli.checkpoints.load.build_model", None)
    run = RunFolder.create(run_checkpoint.parents[2], "first", {})
    job = plan(run, benchmark, PredictConfig(window=64))
    assert job.folder == run.path / "eval" / "mevis" / "frames+window=64" / "predictions"
    assert job.origin() == {"run": "first", "config": {"cma": True, "topk": 2, "mba": "gate", "seed": 0}}
    optional = job.model.model_copy(update={"cma": job.model.cma.model_copy(update={"layers": 2, "levels": (16, 8)})})
    told = replace(job, model=optional).origin()["config"]
    assert told == {"cma": True, "topk": 2, "mba": "gate", "seed": 0, "layers": 2, "levels": [16, 8]}
    alone = plan(None, benchmark, PredictConfig(mode="consistent"), run_checkpoint)
    assert alone.folder == run_checkpoint / "eval" / "mevis" / "consistent" / "predictions"
    for both_or_none in ((run, run_checkpoint), (None, None)):
        with pytest.raises(UsageError, match="--run and --checkpoint"):
            plan(both_or_none[0], benchmark, PredictConfig(), both_or_none[1])
    with pytest.raises(CheckpointError):
        plan(None, benchmark, PredictConfig(), run_checkpoint / "nowhere")
    plain = load_config("tiny").model
    monkeypatch.setattr("salmacli.engine.prediction.benchmark.config_of", lambda *_: plain)
    with pytest.raises(ConfigError, match="no cross-modal attention"):
        plan(None, benchmark, PredictConfig(cma={"frames": "all"}), run_checkpoint)


def test_the_newest_model_of_a_run_in_the_precision_that_is_asked_for(run_checkpoint):
    run = RunFolder.create(run_checkpoint.parents[2], "first", {})
    model, info = load_model(run, None, device="cpu")
    assert model.dtype == torch.float32 and (info.step, info.path) == (7, run_checkpoint)
    assert load_model(None, run_checkpoint, "bf16", "cpu")[0].dtype == torch.bfloat16
    with pytest.raises(UsageError, match="--run and --checkpoint"):
        load_model(None, None)


@pytest.fixture
def speaking_checkpoint(run_checkpoint, monkeypatch):
    """A checkpoint whose model is held to say [SEG]: one from scratch does not."""

    def load(*arguments, **options):
        model, info = load_checkpoint(*arguments, **options)
        answer = model.mllm.answer
        said = torch.tensor(model.tokenizer("It is [SEG].", add_special_tokens=False)["input_ids"])

        def speak(prefix, questions, max_new_tokens, forced=None):
            return answer(prefix, questions, max_new_tokens, forced=forced or [said] * len(questions))

        model.mllm.answer = speak
        return model, info

    monkeypatch.setattr("salmacli.engine.prediction.benchmark.load_checkpoint", load)
    return run_checkpoint


def test_saved_logits_give_the_saved_masks(speaking_checkpoint, benchmark):
    folder, origin = ensure_predictions(
        None, benchmark, PredictConfig(mode="frames"), checkpoint=speaking_checkpoint, save_logits=True
    )
    assert origin["run"] is None
    for video in benchmark.videos:
        content = json.loads((folder / f"{video.name}.json").read_text())
        logits = OwnPredictions(folder).logits(video.name)
        height, width = content["size"]
        for name, entry in content["expressions"].items():
            large = torch.nn.functional.interpolate(
                torch.from_numpy(logits[name]).unsqueeze(1), (height, width), mode="bilinear", align_corners=False
            )
            for counts, mask in zip(entry["masks"], large[:, 0] > 0, strict=True):
                assert np.array_equal(decode({"size": [height, width], "counts": counts}), mask.numpy())


def test_no_seg_is_counted_and_named(run_checkpoint, benchmark, monkeypatch):
    def silent(model, settings, say):
        predictor = Predictor(model, settings, say)
        video = predictor.video
        predictor.video = lambda *given, **options: video(*given, **{**options, "answer": "I see none."})
        return predictor

    monkeypatch.setattr("salmacli.engine.prediction.benchmark.Predictor", silent)
    folder, _ = ensure_predictions(None, benchmark, checkpoint=run_checkpoint)
    for video in benchmark.videos:
        for entry in json.loads((folder / f"{video.name}.json").read_text())["expressions"].values():
            assert (entry["fallback"], entry["answer"]) == ("no-seg", "I see none.")
            assert (entry["empty_frames"], entry["filled_frames"]) == (len(video.frames), 0)


class InThreads:
    """Processes that are threads: each is a rank of its own and they meet at a barrier."""

    def __init__(self, ranks, monkeypatch):
        self.ranks, self.said, self.here = ranks, [None] * ranks, threading.local()
        self.barrier = threading.Barrier(ranks, timeout=60)
        monkeypatch.setattr("salmacli.engine.prediction.benchmark.group", self.group)

    @contextmanager
    def group(self):
        meeting = self

        class Member(Group):
            def gather(self, item):
                meeting.said[self.rank] = item
                meeting.barrier.wait()
                found = list(meeting.said)
                meeting.barrier.wait()
                return found

        yield Member(self.here.rank, self.ranks, torch.device("cpu"))

    def __call__(self, work):
        """What `work` of each rank ends with: None, or an error."""

        def one(rank):
            self.here.rank = rank
            try:
                return work(rank)
            except SalmaError as error:
                return error

        with ThreadPoolExecutor(self.ranks) as pool:
            return list(pool.map(one, range(self.ranks)))


@pytest.fixture
def train_split(small_synthetic):
    return open_synthetic("mevis", small_synthetic, "train")


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_several_processes_leave_what_one_leaves(make_job, train_split, quick, monkeypatch, ranks, listener):
    alone, together = make_job(of=train_split, where="one"), make_job(of=train_split, where="several")
    predict_benchmark(alone, load=Loader(quick), save_logits=True)
    loaders = [Loader(quick) for _ in range(ranks)]
    said = InThreads(ranks, monkeypatch)(
        lambda rank: predict_benchmark(together, load=loaders[rank], save_logits=True, progress=listener)
    )
    assert said == [None] * ranks
    assert [len(loader.calls) for loader in loaders] == [int(rank < len(train_split.videos)) for rank in range(ranks)]
    ours, theirs = contents(together.folder), contents(alone.folder)
    assert json.loads(ours.pop("prediction.json"))["complete"] and theirs.pop("prediction.json")
    assert ours == theirs
    ((task, total, done),) = listener.tasks  # of the main process alone
    assert task.endswith(f"process 1 of {ranks}") and done == 0 and total < 12 * len(train_split.videos)


def test_several_processes_share_what_is_open_and_tell_all_that_failed(make_job, train_split, quick, monkeypatch):
    job = make_job(of=train_split)
    monkeypatch.setattr(type(train_split), "frame_path", lambda *_: job.info.path / "nowhere.jpg")
    InThreads(3, monkeypatch)(lambda rank: predict_benchmark(job, load=Loader(quick)))
    assert list(record_of(job)["failed"]) == [video.name for video in train_split.videos]
    monkeypatch.undo()
    first = train_split.videos[0]
    predict_benchmark(make_job(of=train_split), load=Loader(quick))
    (job.folder / f"{first.name}.json").unlink()
    loaders = [Loader(quick), Loader(quick)]
    InThreads(2, monkeypatch)(lambda rank: predict_benchmark(job, load=loaders[rank]))
    assert [len(loader.calls) for loader in loaders] == [1, 0] and record_of(job)["complete"]


def test_what_stops_one_process_is_known_to_all(make_job, train_split, quick, monkeypatch):
    def breaks(*_):
        raise CheckpointError("a tensor is missing")

    job = make_job(of=train_split)
    said = InThreads(2, monkeypatch)(lambda rank: predict_benchmark(job, load=breaks if rank else Loader(quick)))
    assert [str(error) for error in said] == ["a tensor is missing"] * 2
    there = {path.stem for path in job.folder.glob("*.json")} - {"prediction"}
    assert len(there) == 3 and record_of(job)["complete"] is False  # the other one's share is not lost
