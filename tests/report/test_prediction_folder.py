from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from salmacli.data.frames import arrays
from salmacli.errors import DataError, UsageError
from salmacli.report.overlays import Layer, colour_of
from salmacli.report.prediction_folder import check_free, sentence_folders, write_prediction

ALL = ("rle", "masks", "overlay", "video")
RECORD = {"schema": 1}


def clip(frames: int = 3, size: tuple[int, int] = (20, 30)) -> list[np.ndarray]:
    return [np.full((*size, 3), 20 * n, np.uint8) for n in range(frames)]


def layers(texts: list[str], size: tuple[int, int] = (20, 30)) -> dict[str, Layer]:
    def mask(number: int, row: int) -> np.ndarray:
        picture = np.zeros(size, bool)
        picture[row : row + 4, number : number + 9] = True
        return picture

    names = sentence_folders(texts)
    return {
        name: Layer(text, lambda number, n=n: mask(number, 5 * n % size[0]), colour_of(n))
        for n, (name, text) in enumerate(zip(names, texts, strict=True))
    }


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_names_of_folders_are_short_plain_and_unique():
    assert sentence_folders(["The red circle!", "the red/circle", "", "红色 的圆圈", "../..", "x" * 300]) == [
        "01-the-red-circle",
        "02-the-red-circle",
        "03-expression",
        "04-红色-的圆圈",
        "05-expression",
        f"06-{'x' * 40}",
    ]
    many = sentence_folders(["the same"] * 200)
    assert many[0] == "001-the-same" and many == sorted(set(many))


def test_everything_is_written(tmp_path):
    shown = layers(["one", "two"])
    write_prediction(tmp_path / "out", arrays(clip()), shown, RECORD, ALL, fps=5)
    each = {f"masks/{n:05d}.png" for n in range(3)} | {"overlay.png", "overlay.mp4"}
    assert files(tmp_path / "out") == {
        *(f"{name}/{file}" for name in ("01-one", "02-two") for file in each),
        *("predictions.json", "overlay.png", "overlay.mp4"),
    }
    for name, layer in shown.items():
        for number in range(3):
            picture = Image.open(tmp_path / "out" / name / "masks" / f"{number:05d}.png")
            assert picture.mode == "L" and np.array_equal(np.asarray(picture), layer.mask(number) * 255)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == RECORD
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as video:
        assert video.streams.video[0].average_rate == 5 and sum(1 for _ in video.decode(video=0)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("kinds", "still", "expected"),
    [
        (["rle"], False, {"predictions.json"}),
        (["masks"], False, {"01-a/masks/00000.png"}),
        (["overlay", "rle"], False, {"01-a/overlay.png", "predictions.json"}),
        (["video"], False, {"01-a/overlay.mp4"}),
        (ALL, True, {"01-a/masks/00000.png", "01-a/overlay.png", "predictions.json"}),
    ],
)
def test_only_what_is_asked_for_is_written(tmp_path, kinds, still, expected):
    write_prediction(tmp_path / "out", arrays(clip(1), still=still), layers(["a"]), RECORD, kinds)
    assert files(tmp_path / "out") == expected


def test_the_video_is_as_fast_as_its_source(tmp_path):
    source = arrays(clip())
    for fps, expected in ((None, 10), (30000 / 1001, 29.97)):
        source.fps = fps
        write_prediction(tmp_path / str(fps), source, layers(["a"]), RECORD, ["video"])
        with av.open(str(tmp_path / str(fps) / "01-a" / "overlay.mp4")) as video:
            assert float(video.streams.video[0].average_rate) == pytest.approx(expected, abs=0.001)


def test_progress_counts_what_is_written(tmp_path):
    class Told:
        total = done = 0

        def start(self, task: str, total: int) -> None:
            self.total = total

        def advance(self) -> None:
            self.done += 1

        def finish(self) -> None:
            self.finished = True

    for texts, still, expected in ((["a", "b"], False, 2 * (3 + 1 + 3) + 1 + 3), (["a"], True, 3 + 1)):
        told = Told()
        write_prediction(tmp_path / str(still), arrays(clip(), still), layers(texts), RECORD, ALL, progress=told)
        assert told.total == told.done == expected and told.finished


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError("the disk is gone")])
@pytest.mark.parametrize("kind", ["masks", "overlay", "video"])
def test_what_is_interrupted_leaves_what_was_there(tmp_path, kind, error):
    write_prediction(tmp_path / "out", arrays(clip(1)), layers(["old"]), RECORD, ALL)
    before = files(tmp_path / "out")

    def mask(number: int) -> np.ndarray:
        if number == 4:
            raise error
        return np.zeros((20, 30), bool)

    with pytest.raises((KeyboardInterrupt, DataError)):
        write_prediction(tmp_path / "out", arrays(clip(6)), {"01-new": Layer("new", mask)}, RECORD, [kind])
    assert files(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_is_removed_but_nobody_elses(tmp_path):
    """A folder that a living process holds stays, as do those of other targets and what is no folder of ours."""
    old = time.time() - 60
    for name in ("killed01", "living01", "newborn1"):
        (tmp_path / f".out.{name}.part" / "masks").mkdir(parents=True)
    spared = [tmp_path / name for name in (".out.b.killed01.part", ".out.part", ".out.killed01.old")]
    for folder in spared:
        folder.mkdir()
    for path in tmp_path.rglob("*"):
        if "newborn1" not in str(path):
            os.utime(path, (old, old))
    hold = "from pathlib import Path; from salmacli.report.prediction_folder import _held; import sys\n"
    hold += "with _held(Path(sys.argv[1])) as ours: print(ours, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / ".out.living01.part")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout.readline() == b"True\n"
        write_prediction(tmp_path / "out", arrays(clip(1)), layers(["a"]), RECORD, ["rle"])
        kept = {"out", ".out.living01.part", ".out.newborn1.part", *(folder.name for folder in spared)}
        assert {path.name for path in tmp_path.iterdir()} == kept
        living.kill()
    write_prediction(tmp_path / "out", arrays(clip(1)), layers(["a"]), RECORD, ["rle"])
    assert {path.name for path in tmp_path.iterdir()} == kept - {".out.living01.part"}


def test_what_is_being_written_is_held(tmp_path):
    from salmacli.report.prediction_folder import _held

    found = []

    def mask(number: int) -> np.ndarray:
        (part,) = tmp_path.glob(".out.*.part")
        with _held(part) as ours:
            found.append(ours)
        return np.zeros((20, 30), bool)

    write_prediction(tmp_path / "out", arrays(clip(1)), {"01-a": Layer("a", mask)}, RECORD, ["masks"])
    assert found == [False]


def test_an_earlier_prediction_is_replaced_whole(tmp_path):
    write_prediction(tmp_path / "out", arrays(clip(5)), layers(["old", "older"]), RECORD, ALL)
    with pytest.raises(UsageError, match="exists already; replace it with --force"):
        check_free(tmp_path / "out", force=False)
    check_free(tmp_path / "out", force=True)
    write_prediction(tmp_path / "out", arrays(clip(1)), layers(["new"]), RECORD, ["masks"])
    assert files(tmp_path / "out") == {"01-new/masks/00000.png"}


@pytest.mark.parametrize(
    "name", ["notes.txt", "01-old/notes.txt", "masks/0.png", "old.mp4", "a/overlay.png", "01-old/masks/a/b.png"]
)
def test_force_deletes_nothing_else(tmp_path, name):
    write_prediction(tmp_path / "out", arrays(clip(1)), layers(["old"]), RECORD, ALL)
    (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(UsageError, match=f"also holds {name}, which --force would delete"):
        check_free(tmp_path / "out", force=True)
    check_free(tmp_path / "out", force=True, beside=tmp_path / "out" / name)


def test_places_that_are_none(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    check_free(tmp_path / "new" / "folder", force=False)
    check_free(tmp_path / "here" / "below" / "new", force=False)
    for place, words in (
        ("", "the folder you are in"),
        (tmp_path / "here", "you are in"),
        (tmp_path / "file", "a file"),
    ):
        for force in (False, True):
            with pytest.raises(UsageError, match=words):
                check_free(Path(place), force)
