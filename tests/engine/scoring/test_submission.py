"""Submissions: every mask of the benchmark, as the server wants it, or nothing and the reason."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from salmacli.data.benchmarks import open_benchmark
from salmacli.data.records import Expression, Video
from salmacli.data.rle import encode
from salmacli.engine.progress import Silent
from salmacli.engine.scoring import submission
from salmacli.engine.scoring.submission import encode_png, write_submission
from salmacli.errors import DataError, UsageError

SIZE, FRAMES = (24, 40), ("00000", "00005", "00010")
VIDEOS = {"b0": ("0", "1"), "a1": ("0", "1", "10")}


@pytest.fixture(params=["refytvos", "mevis"])
def benchmark(request, tmp_path):
    """A split without public truth, on disk."""
    root, name = tmp_path / request.param, request.param
    videos = {
        video: {"expressions": {key: {"exp": f"thing {key}"} for key in keys}, "frames": list(FRAMES)}
        for video, keys in VIDEOS.items()
    }
    meta = "meta_expressions/valid/meta_expressions.json" if name == "refytvos" else "valid/meta_expressions.json"
    (root / meta).parent.mkdir(parents=True)
    (root / meta).write_text(json.dumps({"videos": videos}))
    for video in VIDEOS:
        (root / "valid" / "JPEGImages" / video).mkdir(parents=True)
        for frame in FRAMES:
            Image.new("RGB", SIZE[::-1]).save(root / "valid" / "JPEGImages" / video / f"{frame}.jpg")
    return open_benchmark(name, root, "valid")


def mask_of(video, key, frame, size=SIZE):
    return np.random.default_rng([*video.encode(), int(key), int(frame)]).random(size) < 0.3


@pytest.fixture
def predictions(tmp_path):
    for video, keys in VIDEOS.items():
        expressions = {
            key: {"text": f"thing {key}", "masks": [encode(mask_of(video, key, f))["counts"] for f in FRAMES]}
            for key in keys
        }
        write(tmp_path / "predictions", video, expressions)
    return tmp_path / "predictions"


def write(folder, video, expressions, size=SIZE):
    folder.mkdir(exist_ok=True)
    content = {"schema": 1, "video": video, "size": list(size), "frames": list(FRAMES), "expressions": expressions}
    (folder / f"{video}.json").write_text(json.dumps(content))


def change(folder, video, edit):
    content = json.loads((folder / f"{video}.json").read_text())
    edit(content)
    (folder / f"{video}.json").write_text(json.dumps(content))


def test_a_complete_submission(benchmark, predictions, tmp_path):
    out = tmp_path / "made" / "here" / "submission.zip"
    record = write_submission(benchmark, predictions, out)
    top = "Annotations/" if benchmark.name == "refytvos" else ""
    expected = [
        f"{top}{video}/{key}/{frame}.png" for video in ("a1", "b0") for key in VIDEOS[video] for frame in FRAMES
    ]
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == expected
        for name in expected:
            video, key, frame = name.removeprefix(top).removesuffix(".png").split("/")
            picture = Image.open(io.BytesIO(archive.read(name)))
            assert (picture.format, picture.mode, picture.size) == ("PNG", "L", SIZE[::-1])
            assert (np.array(picture) == 255 * mask_of(video, key, frame)).all()
    assert record["path"] == str(out)
    assert record["bytes"] == out.stat().st_size
    assert {key: record[key] for key in ("videos", "expressions", "masks", "extra")} == {
        "videos": 2,
        "expressions": 5,
        "masks": 15,
        "extra": 0,
    }
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_same_predictions_give_the_same_bytes(benchmark, predictions, tmp_path, monkeypatch):
    write_submission(benchmark, predictions, tmp_path / "one.zip")
    monkeypatch.setattr(submission.os, "cpu_count", lambda: 1)
    benchmark.videos = benchmark.videos[::-1]
    write_submission(benchmark, predictions, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_all_that_is_missing_is_named_and_nothing_is_left_behind(benchmark, predictions, tmp_path):
    out = tmp_path / "submission.zip"
    out.write_bytes(b"the last one")
    (predictions / "b0.json").unlink()
    change(predictions, "a1", lambda content: content["expressions"].pop("10"))
    change(predictions, "a1", lambda content: content["expressions"]["1"]["masks"].__setitem__(1, "?"))
    with pytest.raises(DataError) as caught:
        write_submission(benchmark, predictions, out)
    message = str(caught.value)
    assert "10 of 15 predicted masks" in message
    assert "6 video missing, 3 expression missing, 1 RLE that does not fit" in message
    assert "--missing" not in message
    assert out.read_bytes() == b"the last one"
    assert not list(tmp_path.glob(".*"))


def test_other_sizes_are_refused(benchmark, predictions, tmp_path):
    small = (12, 20)
    masks = [encode(mask_of("b0", "0", frame, small))["counts"] for frame in FRAMES]
    write(predictions, "b0", {key: {"text": f"thing {key}", "masks": masks} for key in VIDEOS["b0"]}, size=small)
    with pytest.raises(DataError, match=r"6 of 15 .* 6 of another size.*\(12, 20\) where the frame is \(24, 40\)"):
        write_submission(benchmark, predictions, tmp_path / "submission.zip")


def test_predictions_as_pictures_and_extra_ones(benchmark, tmp_path):
    for video, keys in {**VIDEOS, "c2": ("0",)}.items():
        for key in (*keys, "77"):
            place = tmp_path / "pictures" / video / key
            place.mkdir(parents=True)
            for frame in (*FRAMES, "00015"):
                Image.fromarray(mask_of(video, key, frame)).save(place / f"{frame}.png")
    record = write_submission(benchmark, tmp_path / "pictures", tmp_path / "submission.zip")
    assert record["extra"] == 5 + 2 * 4 + 8
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert len(archive.namelist()) == 15
    (tmp_path / "pictures" / "a1" / "10" / "00005.png").unlink()
    with pytest.raises(DataError, match=r"1 of 15 .*: 1 frame missing; the first: a1/10/00005"):
        write_submission(benchmark, tmp_path / "pictures", tmp_path / "submission.zip")


def test_a_zip_that_does_not_read_back_is_refused(benchmark, predictions, tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: self.namelist()[3])
    with pytest.raises(DataError, match=r"00000\.png does not read back"):
        write_submission(benchmark, predictions, tmp_path / "submission.zip")
    monkeypatch.undo()
    whole = submission._encode

    def short(*args):
        encoded = whole(*args)
        encoded.pictures.pop()
        return encoded

    monkeypatch.setattr(submission, "_encode", short)
    with pytest.raises(DataError, match="13 pictures instead of 15"):
        write_submission(benchmark, predictions, tmp_path / "submission.zip")
    assert not (tmp_path / "submission.zip").exists()


@pytest.mark.parametrize("name", ["../up", "/etc", "a\\b", "c:d"])
def test_names_that_lead_elsewhere_are_refused(name, benchmark, predictions, tmp_path):
    benchmark.videos = (Video("a1", FRAMES, (Expression(name, "thing", ()),)),)
    with pytest.raises(DataError, match="not a plain name"):
        write_submission(benchmark, predictions, tmp_path / "submission.zip")
    benchmark.videos = (Video(name, FRAMES, (Expression("0", "thing", ()),)),)
    with pytest.raises(DataError, match="not a plain name"):
        write_submission(benchmark, predictions, tmp_path / "submission.zip")
    assert not (tmp_path / "submission.zip").exists()


def test_another_number_of_videos_than_the_server_scores_is_said(benchmark, predictions, tmp_path):
    record = write_submission(benchmark, predictions, tmp_path / "submission.zip")
    assert any("202 videos" in note for note in record["notes"]) == (benchmark.name == "refytvos")
    benchmark.synthetic = True
    assert write_submission(benchmark, predictions, tmp_path / "submission.zip")["notes"] == []


def test_other_benchmarks_have_no_form(benchmark, predictions, tmp_path):
    benchmark.name = "revos"
    with pytest.raises(UsageError, match="no form of submission for revos"):
        write_submission(benchmark, predictions, tmp_path / "submission.zip")


def test_predictions_of_another_benchmark_or_sentence_are_refused(benchmark, predictions, tmp_path):
    change(predictions, "a1", lambda content: content["expressions"]["0"].update(text="another thing"))
    with pytest.raises(DataError, match="answers 'another thing'"):
        write_submission(benchmark, predictions, tmp_path / "submission.zip")
    (predictions / "prediction.json").write_text(json.dumps({"schema": 1, "split": "valid_u"}))
    with pytest.raises(DataError, match="split 'valid_u', not 'valid'"):
        write_submission(benchmark, predictions, tmp_path / "submission.zip")


def test_progress(benchmark, predictions, tmp_path):
    class Heard(Silent):
        steps = ()

        def start(self, task, total, done=0):
            self.steps += (total,)

        def advance(self, n=1, **figures):
            self.steps += ("step",)

        def finish(self):
            self.steps += ("end",)

    heard = Heard()
    write_submission(benchmark, predictions, tmp_path / "submission.zip", heard)
    assert heard.steps == (2, "step", "step", "end")


def test_masks_as_png():
    mask = np.zeros((3, 4), dtype=bool)
    mask[1, 2] = True
    picture = Image.open(io.BytesIO(encode_png(mask)))
    assert picture.mode == "L"
    assert np.array(picture).tolist() == (mask * 255).tolist()
