"""Folders of label pictures against the official tool's own numbers, and with every kind of fault in them."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salmacli.engine.progress import Silent
from salmacli.engine.scoring.label_folders import SCORINGS, score_label_folders
from salmacli.errors import DataError, UsageError
from salmacli.metrics.statistics import summarise

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())["videos"]
OFFICIAL = {
    "JF": "J&F-Mean",
    **{
        f"{m}{end}": f"{m}-{title}"
        for m in "JF"
        for end, title in (("", "Mean"), ("_recall", "Recall"), ("_decay", "Decay"))
    },
}


def labels(frames=6, seed=0, noise=0.01):
    """Two boxes that move, with void strewn over them."""
    rng = np.random.default_rng(seed)
    out = np.zeros((frames, 30, 50), dtype=np.uint8)
    for f in range(frames):
        out[f, 3 + f % 8 : 13 + f % 8, 4:20] = 1
        out[f, 5:20, 25 + f % 9 : 40 + f % 9] = 2
    out[rng.random(out.shape) < noise] = 255
    return out


def write(folder, frames):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        picture = Image.fromarray(frame)
        if number % 2:  # indexed and grey ones are the same
            picture.putpalette(list(range(256)) * 3)
        picture.save(folder / f"{number:05d}.png")
    return folder


@pytest.fixture(scope="module")
def videos():
    sys.path.insert(0, str(GOLDEN))
    try:
        return runpy.run_path(str(GOLDEN / "cases.py"))["videos"]()
    finally:
        sys.path.remove(str(GOLDEN))


@pytest.fixture
def folders(tmp_path):
    """A truth and predictions of two sequences, equal but for the void."""
    for sequence, frames in (("a", 6), ("b", 5)):
        write(tmp_path / "truth" / sequence, labels(frames))
        write(tmp_path / "prediction" / sequence, labels(frames, noise=0))
    return tmp_path / "truth", tmp_path / "prediction"


def is_official(evaluation, run, decay=True):
    """The same numbers to the last bit, and the same files to the last byte."""
    scores = {OFFICIAL[key]: value for key, value in evaluation.results["scores"].items()}
    kept = [key for key in run["global"] if decay or "Decay" not in key]
    assert {key: scores[key] for key in kept} == {key: run["global"][key] for key in kept}
    assert len(evaluation.rows) == len(run["objects"])
    for row, expected in zip(evaluation.rows.to_dict("records"), run["objects"].values(), strict=True):
        assert row["frames"] == expected["frames"]
        for metric in "JF":
            mean, recall, fall = expected[metric]
            assert (row[metric], row[f"{metric}_recall"]) == (mean, recall)
            assert row[f"{metric}_decay"] == fall or not decay
    if decay:
        assert evaluation.texts == run["csv"]


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("case", CASES)
def test_official_numbers_of_small_cases(case, scoring, videos, tmp_path):
    truth, prediction = videos[case]
    write(tmp_path / "truth" / "a", truth)
    write(tmp_path / "prediction" / "a", prediction)
    run = CASES[case][scoring]
    if run["refused"] is None:
        evaluation = score_label_folders(tmp_path / "truth", tmp_path / "prediction", scoring)
        # The official decay of longer videos is NaN: its frame numbers have 8 bits.
        is_official(evaluation, run, decay=int(evaluation.rows["frames"].max()) < 256)
    elif scoring == "unsupervised":
        with pytest.raises(DataError, match=r"predictions of a have label 255, .* takes 20"):
            score_label_folders(tmp_path / "truth", tmp_path / "prediction", scoring)
    else:
        # Labels above the number of objects are reported, and the scores are those without them.
        evaluation = score_label_folders(tmp_path / "truth", tmp_path / "prediction", scoring)
        above = np.unique(prediction[1:-1][prediction[1:-1] > truth[0].max()])
        assert evaluation.results["extra"] == [{"where": f"a, label {n}", "masks": 1} for n in above]
        write(tmp_path / "clean" / "a", np.where(prediction > truth[0].max(), 0, prediction))
        clean = score_label_folders(tmp_path / "truth", tmp_path / "clean", scoring)
        assert clean.results["scores"] == evaluation.results["scores"]
        assert clean.results["counts"]["extra"] == 0


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("direction", [("rvos", "osvos"), ("osvos", "rvos")])
def test_official_numbers_of_real_masks(direction, scoring, shared_data, tmp_path):
    prediction, truth = direction
    run = json.loads((GOLDEN / "real_masks.json").read_text())["directions"][f"{prediction} against {truth}"][scoring]
    # Where the truth has twenty objects, the official tool was given two sequences: it takes hours for all.
    for name in {name.rpartition("_")[0] for name in run["objects"]}:
        for folder in direction:
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).symlink_to(shared_data.resolve() / "real_masks" / folder / name)
    evaluation = score_label_folders(tmp_path / truth, tmp_path / prediction, scoring)
    is_official(evaluation, run)
    assert bool(run["refused"]) == bool(evaluation.results["counts"]["extra"])


def test_swapped_identities_cost_nothing_where_they_are_matched(tmp_path):
    truth = labels(noise=0)
    write(tmp_path / "truth" / "a", truth)
    write(tmp_path / "prediction" / "a", np.array([0, 2, 1], dtype=np.uint8)[truth])
    found = score_label_folders(tmp_path / "truth", tmp_path / "prediction", "unsupervised")
    assert found.results["scores"]["JF"] == 1.0
    assert found.rows[["object", "proposal"]].to_numpy().tolist() == [[2, 1], [1, 2]]
    assert score_label_folders(tmp_path / "truth", tmp_path / "prediction").results["scores"]["J"] == 0.0


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_full_frame_against_an_empty_one_has_a_perfect_contour(scoring, tmp_path):
    truth = np.zeros((5, 20, 30), dtype=np.uint8)
    truth[0] = 1
    write(tmp_path / "truth" / "a", truth)
    write(tmp_path / "prediction" / "a", np.ones_like(truth))
    frames = score_label_folders(tmp_path / "truth", tmp_path / "prediction", scoring).frames
    assert set(frames["J"][frames["frame"] != "00000"]) == {0.0}
    assert set(frames["F"]) == {1.0}


def test_decay_of_more_than_256_frames(tmp_path):
    truth, prediction = labels(302, noise=0), labels(302, noise=0)
    prediction[200:] = 0  # all is lost in the end
    write(tmp_path / "truth" / "a", truth)
    write(tmp_path / "prediction" / "a", prediction)
    found = score_label_folders(tmp_path / "truth", tmp_path / "prediction")
    assert found.rows[["J_decay", "F_decay"]].to_numpy().tolist() == [[1.0, 1.0]] * 2
    series = np.r_[np.ones(199), np.zeros(101)]
    assert found.rows["J"].tolist() == [summarise(series).mean] * 2


def test_void_is_background_where_identities_are_given_and_taken_out_where_they_are_matched(tmp_path):
    truth = np.zeros((4, 20, 30), dtype=np.uint8)
    truth[:, 5:15, 5:15] = 1
    truth[:, 5:15, 15:20] = 255
    prediction = np.where(truth > 0, 1, 0).astype(np.uint8)
    write(tmp_path / "truth" / "a", truth)
    write(tmp_path / "prediction" / "a", prediction)
    scores = {
        s: score_label_folders(tmp_path / "truth", tmp_path / "prediction", s).results["scores"] for s in SCORINGS
    }
    assert scores["unsupervised"]["J"] == 1.0
    assert scores["semi-supervised"]["J"] == 100 / 150


def test_per_frame_counts_give_the_scores_again(folders):
    for scoring in SCORINGS:
        found = score_label_folders(*folders, scoring)
        frames = found.frames
        assert len(frames) == sum(found.rows["frames"])
        assert (frames["J"] == frames["intersection"] / frames["union"]).all()
        of_objects = frames.groupby(["sequence", "object"])["F"].mean()
        expected = found.rows.set_index(["sequence", "object"])["F"]
        assert of_objects.to_numpy() == pytest.approx(expected.reindex(of_objects.index).to_numpy())
        assert set(frames["pixels"]) == {1500}
        assert frames["problem"].isna().all()


def test_what_results_say(folders):
    found = score_label_folders(*folders, "unsupervised", name="dev")
    results = found.results
    assert results["protocol"]["name"] == "unsupervised"
    assert results["protocol"]["missing"] == "error"
    assert results["metrics"] == ["JF", "J", "F"] and set(results["metrics"]) < set(results["scores"])
    assert results["counts"] == {
        "videos": 2,
        "objects": 4,
        "left_out": 0,
        "frames": 22,
        "missing": 0,
        "problems": {},
        "extra": 0,
        "fallbacks": {},
    }
    assert sorted(found.texts) == ["global_results-dev.csv", "per-sequence_results-dev.csv"]
    assert found.rows_name == "per_object"


def test_files_are_written(folders, tmp_path):
    found = score_label_folders(*folders)
    found.write(tmp_path / "scores")
    written = {path.name for path in (tmp_path / "scores").iterdir() if not path.name.startswith(".")}
    tables = {f"{name}.{suffix}" for name in ("per_object", "per_frame") for suffix in ("csv", "parquet")}
    assert written == {"results.json", *tables, *found.texts}
    assert (tmp_path / "scores" / "global_results-val.csv").read_text() == found.texts["global_results-val.csv"]


def missing_sequence(folder):
    for path in (folder / "a").iterdir():
        path.unlink()
    (folder / "a").rmdir()


def missing_frame(folder):
    (folder / "a" / "00002.png").unlink()


def other_size(folder):
    Image.fromarray(labels()[2][:20]).save(folder / "a" / "00002.png")


def other_mode(folder):
    Image.new("RGB", (50, 30)).save(folder / "a" / "00002.png")


def cut_off(folder):
    whole = (folder / "a" / "00002.png").read_bytes()
    (folder / "a" / "00002.png").write_bytes(whole[: len(whole) // 2])


FAULTS = {
    "video": missing_sequence,
    "frame": missing_frame,
    "size": other_size,
    "mode": other_mode,
    "unreadable": cut_off,
}


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_named_and_counted_and_score_as_asked(kind, scoring, folders):
    whole = score_label_folders(*folders, scoring)
    FAULTS[kind](folders[1])
    frames = 2 * (4 if scoring == "semi-supervised" else 6) if kind == "video" else 2
    total = len(whole.frames)
    with pytest.raises(
        DataError, match=rf"{frames} of {total} predicted masks .*: a{'' if kind == 'video' else '/00002'} \("
    ):
        score_label_folders(*folders, scoring)

    zero = score_label_folders(*folders, scoring, missing="zero")
    drop = score_label_folders(*folders, scoring, missing="drop")
    for found in (zero, drop):
        assert found.results["counts"]["problems"] == {kind: frames}
        assert found.results["counts"]["missing"] == frames
        (problem,) = found.results["problems"]
        assert (problem["kind"], problem["masks"]) == (kind, frames)
        assert len(found.frames) == total
        wrong = found.frames["problem"].notna()
        assert (wrong.sum(), set(found.frames["problem"][wrong])) == (frames, {kind})
    wrong = zero.frames["problem"].notna()
    assert (zero.frames.loc[wrong, ["J", "F"]] == 0).all(axis=None)
    assert drop.frames.loc[wrong, ["J", "F"]].isna().all(axis=None)
    assert (drop.frames.loc[wrong, "union"] > 0).all()
    assert zero.results["counts"]["frames"] == total
    assert drop.results["counts"]["frames"] == total - frames
    assert drop.results["counts"]["left_out"] == (2 if kind == "video" else 0)
    for found in (zero, drop):
        means = found.frames.groupby(["sequence", "object"])["J"].mean().dropna()
        rows = found.rows.set_index(["sequence", "object"])["J"]
        assert means.to_numpy() == pytest.approx(rows.reindex(means.index).to_numpy())
    assert zero.results["scores"]["J"] < whole.results["scores"]["J"]


def test_a_lost_frame_scores_zero_even_where_nothing_is_to_be_seen(tmp_path):
    truth = labels(6, noise=0)
    truth[3] = 0
    write(tmp_path / "truth" / "a", truth)
    write(tmp_path / "prediction" / "a", truth)
    (tmp_path / "prediction" / "a" / "00003.png").unlink()
    for scoring, frames in (("semi-supervised", 4), ("unsupervised", 6)):
        found = score_label_folders(tmp_path / "truth", tmp_path / "prediction", scoring, missing="zero")
        assert found.rows["J"].tolist() == [(frames - 1) / frames] * 2


def test_extra_sequences_frames_and_labels_are_reported(folders):
    truth, prediction = folders
    write(prediction / "c", labels(3))
    Image.fromarray(labels()[0]).save(prediction / "a" / "00009.png")
    more = labels()[2]
    more[:2, :2] = 7
    Image.fromarray(np.where(more == 255, 0, more)).save(prediction / "a" / "00002.png")
    extra = score_label_folders(truth, prediction).results["extra"]
    assert {entry["where"]: entry["masks"] for entry in extra} == {"c": 3, "a/00009": 1, "a, label 7": 1}
    matched = score_label_folders(truth, prediction, "unsupervised")
    assert {entry["where"]: entry["masks"] for entry in matched.results["extra"]} == {"c": 3, "a/00009": 1}


def test_objects_that_come_later_are_named(tmp_path):
    truth = labels(6, noise=0)
    truth[3, :2, :2] = 3
    write(tmp_path / "truth" / "a", truth)
    for scoring in SCORINGS:
        found = score_label_folders(tmp_path / "truth", tmp_path / "truth", scoring)
        assert found.results["unscored_labels"] == ["a, label 3"]
        assert found.rows["object"].tolist() == [1, 2]


def test_fewer_proposals_than_objects_leave_objects_without_one(tmp_path):
    truth = labels(noise=0)
    write(tmp_path / "truth" / "a", truth)
    write(tmp_path / "prediction" / "a", np.where(truth == 2, 1, 0).astype(np.uint8))
    found = score_label_folders(tmp_path / "truth", tmp_path / "prediction", "unsupervised")
    assert found.rows["object"].tolist() == [2, 1]
    assert found.rows["proposal"].fillna(-1).tolist() == [1, -1]
    assert found.rows["J"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("missing", ["error", "zero", "drop"])
def test_a_broken_truth_is_always_an_error(missing, folders):
    truth, prediction = folders
    other_size(truth)
    with pytest.raises(DataError, match=r"truth.a.00002\.png is of size \(20, 50\) where 00000\.png is \(30, 50\)"):
        score_label_folders(truth, prediction, missing=missing)
    other_mode(truth)
    with pytest.raises(DataError, match=r"truth.a.00002\.png is a picture of mode RGB"):
        score_label_folders(truth, prediction, missing=missing)
    (truth / "a" / "00002.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"truth.a.00002\.png cannot be read"):
        score_label_folders(truth, prediction, missing=missing)


def test_folders_that_are_none(tmp_path, folders):
    truth, prediction = folders
    with pytest.raises(DataError, match="nowhere is not a folder"):
        score_label_folders(tmp_path / "nowhere", prediction)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        score_label_folders(truth, tmp_path / "nowhere", missing="zero")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing holds no folder"):
        score_label_folders(tmp_path / "nothing", prediction)
    with pytest.raises(DataError, match="no object is left to score"):
        score_label_folders(truth, tmp_path / "nothing", missing="drop")
    with pytest.raises(DataError, match="not a plain name"):
        score_label_folders(truth, prediction, name="../val")
    with pytest.raises(UsageError, match="no scoring 'supervised'"):
        score_label_folders(truth, prediction, "supervised")
    (truth / "c").mkdir()
    with pytest.raises(DataError, match=r"truth.c has no PNG"):
        score_label_folders(truth, prediction)
    Image.fromarray(labels()[0]).save(truth / "c" / "00000.png")
    with pytest.raises(DataError, match="c has 1 frames, none beside the first and last"):
        score_label_folders(truth, prediction)
    Image.new("L", (50, 30)).save(truth / "c" / "00000.png")
    with pytest.raises(DataError, match=r"c.00000\.png has no object"):
        score_label_folders(truth, prediction, "unsupervised")


def test_each_picture_is_read_once(folders, monkeypatch):
    from salmacli.engine.scoring import label_counts

    read = []
    monkeypatch.setattr(label_counts, "read_labels", lambda path: read.append(path) or np.array(Image.open(path)))
    score_label_folders(*folders, "unsupervised")
    assert len(read) == len(set(read)) == 22
    read.clear()
    score_label_folders(*folders)
    # The first true frame says which objects there are; the last frames and the first prediction say nothing.
    assert len(read) == len(set(read)) == 2 + 2 * (4 + 3)


def test_progress_and_a_worker_that_dies(folders, monkeypatch):
    from salmacli.engine.scoring import label_counts

    class Heard(Silent):
        total = done = 0

        def start(self, task, total, done=0):
            self.total = total

        def advance(self, n=1, **figures):
            self.done += n

    heard = Heard()
    score_label_folders(*folders, progress=heard)
    assert (heard.total, heard.done) == (2, 2)
    monkeypatch.setattr(label_counts, "count_labels", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score_label_folders(*folders)


def test_frames_out_of_order_are_refused_and_hidden_files_are_none(folders):
    truth, prediction = folders
    sequence = sorted(path for path in truth.iterdir() if path.is_dir())[0]
    (sequence / "._00000.png").write_bytes(b"left by another system")
    whole = score_label_folders(truth, prediction)
    assert whole.results["counts"]["extra"] == 0
    frames = sorted(path for path in sequence.glob("*.png") if not path.name.startswith("."))
    for folder in (sequence, prediction / sequence.name):
        for number, name in enumerate(path.name for path in frames):
            (folder / name).rename(folder / f"{number + 8}.png")
    with pytest.raises(DataError, match="not in order"):
        score_label_folders(truth, prediction)
