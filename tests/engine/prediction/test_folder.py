"""The predictions folder: whose it is, what is whole, and the form of a video's file."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest

from salmacli.data import rle
from salmacli.data.frames import arrays
from salmacli.data.records import Expression, Video
from salmacli.engine.prediction.folder import check_ours, claim, done, finish, refuse_failed, same, video_record, write
from salmacli.engine.scoring.own_predictions import OwnPredictions
from salmacli.errors import DataError

VIDEO = Video("cat", ("0", "1"), (Expression("a", "the cat", ()), Expression("b", "the other cat", ())))
RECORD = {
    "schema": 1,
    "benchmark": "mevis",
    "checkpoint": {"path": "here", "sha256": "1"},
    "resolved": {"window": None},
}


@pytest.fixture
def tracks(quick):
    pictures = np.random.default_rng(0).integers(0, 255, (2, 24, 32, 3)).astype(np.uint8)
    return quick.video(arrays(list(pictures)), [one.text for one in VIDEO.expressions], keep_logits=True)


def test_a_video_reads_back_as_it_was_written(tmp_path, tracks):
    write(tmp_path, VIDEO, (24, 32), tracks, save_logits=True)
    found = OwnPredictions(tmp_path)
    read, logits = found.read(VIDEO), found.logits("cat")
    for expression, track in zip(VIDEO.expressions, tracks, strict=True):
        masks = [read.bits(expression.id, frame).to_mask() for frame in VIDEO.frames]
        assert np.array_equal(masks, track.masks()) and track.masks().any()
        assert np.array_equal(logits[expression.id], track.logits)
        said = read.said(expression.id)
        assert (said.text, said.answer, said.fallback) == (track.text, "Sure, [SEG].", track.reason)
        assert (said.empty, said.filled) == (track.empty, 0)


def test_answers_of_windows_are_told_where_they_differ(tracks):
    from dataclasses import replace

    several = [replace(tracks[0], answers=("one [SEG]", "two [SEG]")), replace(tracks[1], answers=("[SEG]",) * 3)]
    content = video_record("cat", (24, 32), VIDEO.frames, ["a", "b"], several)["expressions"]
    assert content["a"]["answer"] == "one [SEG]" and content["a"]["answers"] == ["one [SEG]", "two [SEG]"]
    assert content["b"]["answer"] == "[SEG]" and "answers" not in content["b"]


def test_a_video_without_expressions_has_a_size_all_the_same(tmp_path):
    write(tmp_path, Video("cat", ("0",), ()), (24, 32), [])
    assert OwnPredictions(tmp_path).read(VIDEO).size == (24, 32)


def test_logits_are_of_those_that_have_some(tmp_path, tracks):
    from dataclasses import replace

    write(tmp_path, VIDEO, (24, 32), [replace(tracks[0], logits=None, reason="no-seg"), tracks[1]], save_logits=True)
    assert list(OwnPredictions(tmp_path).logits("cat")) == ["b"]


def test_a_video_is_done_when_all_that_is_asked_for_is_there(tmp_path, tracks):
    assert not done(tmp_path, VIDEO, False)
    write(tmp_path, VIDEO, (24, 32), tracks)
    assert done(tmp_path, VIDEO, False) and not done(tmp_path, VIDEO, True)
    write(tmp_path, VIDEO, (24, 32), tracks, save_logits=True)
    assert done(tmp_path, VIDEO, True)
    logits, masks = (tmp_path / "cat.npz").read_bytes(), json.loads((tmp_path / "cat.json").read_text())
    (tmp_path / "cat.npz").write_bytes(logits[:-40])
    assert done(tmp_path, VIDEO, False) and not done(tmp_path, VIDEO, True)
    (tmp_path / "cat.npz").write_bytes(logits)
    for change in ({"video": "dog"}, {"frames": ["0"]}, {"expressions": {"a": {}}}, {"expressions": ["a", "b"]}):
        (tmp_path / "cat.json").write_text(json.dumps({**masks, **change}))
        assert not done(tmp_path, VIDEO, True)
    for text in ("[]", json.dumps(masks)[:-9]):
        (tmp_path / "cat.json").write_text(text)
        assert not done(tmp_path, VIDEO, True)
    (tmp_path / "cat.json").write_text(json.dumps(masks))
    assert done(tmp_path, VIDEO, True)
    (tmp_path / "cat.json").unlink()  # killed after the logits
    assert not done(tmp_path, VIDEO, True)
    with pytest.raises(DataError, match="plain name"):
        done(tmp_path, Video("../cat", ("0",), ()), False)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({}, True),
        ({"complete": True, "failed": {"cat": "?"}, "speed": {"readers": 9}, "settings": {"window": 1}}, True),
        ({"checkpoint": {"path": "moved", "sha256": "1"}}, True),
        ({"checkpoint": {"path": "here", "sha256": "2"}}, False),
        ({"resolved": {"window": 64}}, False),
        ({"benchmark": "revos"}, False),
        ({"data": "3"}, False),
    ],
)
def test_predictions_are_the_same_by_what_makes_them(tmp_path, listener, change, is_same):
    other = {**RECORD, **change}
    assert same(RECORD, other) is is_same
    folder = tmp_path / "predictions"
    claim(folder, RECORD, listener)
    (folder / "cat.json").write_text("{}")
    claim(folder, other, listener)
    assert (folder / "cat.json").exists() is is_same
    assert (tmp_path / "predictions.old-1" / "cat.json").exists() is not is_same
    assert len(listener.said) == (0 if is_same else 1)
    assert json.loads((folder / "prediction.json").read_text())["complete"] is False


def test_scores_go_aside_with_the_predictions_they_are_of(tmp_path, listener):
    place = tmp_path / "frames"
    folder = place / "predictions"
    claim(folder, RECORD, listener)
    ours = ["results.json", "per_expression.csv", "per_frame.parquet", "per_object.csv", "threshold_sweep.png"]
    elsewhere = [tmp_path / "frames+v2" / "results.json", tmp_path / "frames+window=64" / "results.json"]
    for path in (*(place / name for name in ours), place / "notes.txt", *elsewhere):
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
    claim(folder, RECORD, listener)
    assert all((place / name).exists() for name in ours) and listener.said == []
    claim(folder, {**RECORD, "data": "3"}, listener)
    aside = place / "predictions.old-1"
    assert {path.name for path in place.iterdir()} == {"predictions", "predictions.old-1", "notes.txt"}
    assert {path.name for path in (aside / "scores").iterdir()} == set(ours)
    assert (aside / "scores+v2" / "results.json").exists() and [path.exists() for path in elsewhere] == [False, True]
    assert OwnPredictions(aside).videos() == set()


def test_files_of_unknown_origin_are_not_adopted(tmp_path, listener):
    folder = tmp_path / "predictions"
    folder.mkdir()
    (folder / ".a.json.x.part").write_text("")
    claim(folder, RECORD, listener)
    assert listener.said == []
    (folder / "prediction.json").unlink()
    (folder / "cat.npz").write_text("")
    claim(folder, RECORD, listener)
    assert not (folder / "cat.npz").exists() and (tmp_path / "predictions.old-1" / "cat.npz").exists()
    assert "unknown origin" in listener.said[0]


@pytest.mark.parametrize("content", ["[]", '{"schema": 1', '{"checkpoint": []}', '{"resolved": 1}', '{"failed": []}'])
def test_a_broken_record_says_how_to_go_on(tmp_path, listener, content):
    (tmp_path / "prediction.json").write_text(content)
    for use in (
        lambda: claim(tmp_path, RECORD, listener),
        lambda: refuse_failed(tmp_path, "mevis"),
        lambda: finish(tmp_path, RECORD, {}),
    ):
        with pytest.raises(DataError, match=r"prediction\.json.*; remove it and run again"):
            use()
    assert (tmp_path / "prediction.json").read_text() == content


def test_who_has_lost_the_folder_stops(tmp_path, listener):
    folder = tmp_path / "predictions"
    claim(folder, RECORD, listener)
    check_ours(folder, {**RECORD, "checkpoint": {"path": "moved", "sha256": "1"}})
    theirs = {**RECORD, "resolved": {"window": 64}}
    claim(folder, theirs, listener)
    check_ours(folder, theirs)
    whole = (folder / "prediction.json").read_text()
    for use in (lambda: check_ours(folder, RECORD), lambda: finish(folder, RECORD, {})):
        with pytest.raises(DataError, match=r"another `salma eval` has taken .*predictions; run this one again when"):
            use()
    assert (folder / "prediction.json").read_text() == whole
    (folder / "prediction.json").unlink()
    with pytest.raises(DataError, match="has taken"):
        check_ours(folder, theirs)


def test_remains_of_a_kill_go_when_nobody_can_be_writing_them(tmp_path, listener):
    claim(tmp_path, RECORD, listener)
    fresh, stale = tmp_path / ".a.json.x.part", tmp_path / ".b.json.y.part"
    for part in (fresh, stale):
        part.write_text("")
    os.utime(stale, (time.time() - 9999,) * 2)
    claim(tmp_path, RECORD, listener)
    assert fresh.exists() and not stale.exists()


def test_videos_that_could_not_be_predicted_are_named(tmp_path, listener):
    claim(tmp_path, RECORD, listener)
    finish(tmp_path, RECORD, {})
    refuse_failed(tmp_path, "mevis")
    assert json.loads((tmp_path / "prediction.json").read_text()) == {**RECORD, "complete": True}
    finish(tmp_path, RECORD, {f"v{n}": f"frame {n} is broken" for n in range(5)})
    assert json.loads((tmp_path / "prediction.json").read_text())["complete"] is False
    with pytest.raises(DataError) as caught:
        refuse_failed(tmp_path, "mevis")
    message = str(caught.value)
    for part in ("5 videos of mevis", "v0 (frame 0 is broken)", "v2 (", "and 2 more", f"--predictions {tmp_path}"):
        assert part in message
    assert "v3" not in message


def test_files_are_the_same_bytes_whenever_they_are_written(tmp_path, tracks, monkeypatch):
    for name in ("one", "two"):
        write(tmp_path / name, VIDEO, (24, 32), tracks, save_logits=True)
        monkeypatch.setattr(time, "time", lambda: 10.0**9)
    for kind in ("json", "npz"):
        assert (tmp_path / "one" / f"cat.{kind}").read_bytes() == (tmp_path / "two" / f"cat.{kind}").read_bytes()
    with np.load(tmp_path / "one" / "cat.npz") as arrays_:
        assert np.array_equal(arrays_["a"], tracks[0].logits)
    assert rle.decode({"size": [24, 32], "counts": tracks[0].counts[0]}).shape == (24, 32)
