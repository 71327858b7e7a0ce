"""`salma predict` as a user types it; a stand-in predicts, so that a test takes no model to load."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from salmacli.cli import main
from salmacli.config.schema import ModelConfig, PredictConfig
from salmacli.data import rle
from salmacli.data.frames import FrameSource
from salmacli.engine.prediction import benchmark, predictor
from salmacli.engine.prediction.settings import resolved
from salmacli.engine.prediction.tracks import Track
from salmacli.errors import DataError

MODEL = ModelConfig.model_validate({"mllm": {"base": "x"}})
SEG = "Sure, [SEG]."


class StandIn:
    """Finds a square that grows in every frame, but nothing for a sentence that says so."""

    told: dict = {}  # noqa: RUF012 - what the last one was asked

    def __init__(self, model: object, settings: PredictConfig, say: object) -> None:
        self.settings = resolved(settings, MODEL)
        self.mode = self.settings.mode

    def video(self, frames: FrameSource, texts: list[str], *, answer, keep_logits, advance) -> list[Track]:
        StandIn.told = {"settings": self.settings, "answer": answer, "still": frames.still, "texts": texts}
        for _ in frames:
            advance(1)
        return [self._track(frames, text, answer or SEG, keep_logits) for text in texts]

    def _track(self, frames: FrameSource, text: str, answer: str, keep_logits: bool) -> Track:
        found = "nothing" not in text
        masks = np.zeros((len(frames), *frames.size), bool)
        for number, mask in enumerate(masks if found else ()):
            mask[: 3 + number, :5] = True
        return Track(
            text=text,
            answers=(answer,),
            size=frames.size,
            counts=[rle.encode(mask)["counts"] for mask in masks],
            reason=None if found else "no-seg",
            empty=0 if found else len(masks),
            filled=0,
            logits=np.ones((len(masks), 4, 4), np.float32) if keep_logits and found else None,
            embedding=torch.ones(6) if found else None,
            side=16,
            by_side=False,
        )


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one run and three frames; it counts how often a model is loaded."""
    run = tmp_path / "runs" / "first"
    (run / "checkpoints" / "step-7").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (tmp_path / "clip").mkdir()
    for number in range(3):
        Image.fromarray(np.full((20, 30, 3), 40 * number, np.uint8)).save(tmp_path / "clip" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    loaded.clear()

    def load(run: object, checkpoint: object, precision: str) -> tuple[object, object]:
        loaded.append((run and run.name, checkpoint, precision))
        return object(), SimpleNamespace(path="here", step=7, record=lambda: {"path": "here", "step": 7})

    monkeypatch.setattr(benchmark, "load_model", load)
    monkeypatch.setattr(predictor, "Predictor", StandIn)
    return tmp_path


loaded: list[tuple] = []


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, before_the_model: bool = True) -> str:
    """Run a prediction that must fail with `status` and one line; that line. It leaves nothing behind."""
    before = sorted(filter(Path.is_file, Path().rglob("*")))
    loaded.clear()
    assert main(["predict", *arguments]) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("salma: error:")]
    assert len(lines) == 1 and bool(loaded) != before_the_model
    assert sorted(filter(Path.is_file, Path().rglob("*"))) == before
    return lines[0]


def test_several_sentences(place, capsys):
    texts = ["the Red circle", "nothing of the kind", "a [b]old[/b] one"]
    asked = [word for text in texts for word in ("--text", text)]
    assert main(["predict", "clip", *asked, "--json"]) == 0
    out = capsys.readouterr()
    told = json.loads(out.out)
    assert (told["schema"], told["frames"], told["size"], told["mode"]) == (1, 3, [20, 30], "consistent")
    assert told["settings"]["key_frames"] == 5 and told["checkpoint"]["step"] == 7 and told["source"] == "clip"
    rows = told["expressions"]
    assert [row["text"] for row in rows] == StandIn.told["texts"] == texts
    assert [row["fallback"] for row in rows] == [None, "no-seg", None]
    assert [(row["frames_with_mask"], row["empty_frames"]) for row in rows] == [(3, 0), (0, 3), (3, 0)]
    assert rows[0]["mean_area"] == pytest.approx((15 + 20 + 25) / 3 / 600)
    folder = place / "predictions" / "clip"
    names = ["01-the-red-circle", "02-nothing-of-the-kind", "03-a-b-old-b-one"]
    assert [row["folder"] for row in rows] == [f"predictions/clip/{name}" for name in names]
    for name in names:
        assert {file.name for file in (folder / name).iterdir()} == {"masks", "overlay.png", "overlay.mp4"}
        assert [mask.stem for mask in sorted((folder / name / "masks").iterdir())] == ["0", "1", "2"]
    assert {file.name for file in folder.iterdir()} == {*names, "predictions.json", "overlay.png", "overlay.mp4"}
    assert loaded == [("first", None, "auto")] and "run: runs/first (the newest)" in out.err
    assert (
        "clip, 3 frames of 30x20" in out.err and "predicting: 3/3" in out.err and "written: predictions/clip" in out.err
    )


def test_the_table_shows_sentences_as_they_are(capsys):
    texts = ["a [b]bold[/b] one", "closed [/x]", "nothing"]
    assert main(["predict", "clip", "--write", "overlay", *(word for text in texts for word in ("--text", text))]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in texts) and SEG in out
    assert "3 of 3" in out and "0 of 3 (no-seg)" in out and "03-nothing/" in out and "3.3%" in out


def test_the_table_is_short_and_steers_no_terminal(capsys):
    answer = "\x1b[31mred\x07\ufffd [link=x]l[/link] [SEG]"
    assert main(["predict", "clip", "--text", "word " * 3000, "--answer", answer, "--write", "rle"]) == 0
    out = capsys.readouterr().out
    assert not any(one in out for one in "\x1b\x07\ufffd") and "?[31mred?? [link=x]l[/link] [SEG]" in out
    assert f"│ {'word ' * 7}word… │" in out  # 40 columns of 15,000


def test_predictions_json_is_what_eval_writes(place, capsys):
    assert main(["predict", "clip", "--text", "the circle", "--write", "rle", "--json"]) == 0
    record = json.loads((place / "predictions" / "clip" / "predictions.json").read_text())
    (expression,) = record.pop("expressions").values()
    assert record == {"schema": 1, "video": "clip", "size": [20, 30], "frames": ["0", "1", "2"]}
    assert (expression["text"], expression["answer"], expression["fallback"]) == ("the circle", SEG, None)
    assert (expression["empty_frames"], expression["filled_frames"]) == (0, 0)
    mask = rle.decode({"size": [20, 30], "counts": expression["masks"][1]})
    assert mask[:4, :5].all() and mask.sum() == 20
    assert [path.name for path in (place / "predictions" / "clip").iterdir()] == ["predictions.json"]
    assert json.loads(capsys.readouterr().out)["expressions"][0]["folder"] is None


def test_options_reach_the_predictor(place):
    options = [
        "--mode",
        "frames",
        "--fallback",
        "previous",
        "--precision",
        "fp32",
        "--set",
        "window=64",
        "--set",
        "overlap=4",
    ]
    assert main(["predict", "clip", "--text", "a", "--answer", "It is [SEG]", "--run", "first", *options]) == 0
    settings = StandIn.told["settings"]
    assert (settings.mode, settings.fallback, settings.precision) == ("frames", "previous", "fp32")
    assert (settings.window, settings.overlap) == (64, 4) and StandIn.told["answer"] == "It is [SEG]"
    assert loaded == [("first", None, "fp32")]


def test_a_picture_is_still_and_has_no_video(place, capsys):
    assert main(["predict", "clip/1.png", "--text", "a", "--out", "o"]) == 0
    assert StandIn.told["still"]
    assert sorted(path.name for path in (place / "o" / "01-a").iterdir()) == ["masks", "overlay.png"]
    assert "no video is written" in fails(capsys, ["clip/1.png", "--text", "a", "--write", "video"], 2)


def test_two_hundred_sentences(place, capsys):
    asked = [word for number in range(200) for word in ("--text", f"the thing {number} " + "very far away " * 8)]
    assert main(["predict", "clip", *asked, "--write", "masks"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 160 and all(f"the thing {number} " in out for number in range(200))
    names = sorted(path.name for path in (place / "predictions" / "clip").iterdir() if path.is_dir())
    assert len(names) == 200 and names[0].startswith("001-the-thing-0") and max(map(len, names)) <= 44


def test_what_is_there_stays_without_force(place, capsys):
    one = ["predict", "clip", "--text", "one"]
    assert main([*one, "--text", "two"]) == 0
    assert "exists already; replace it with --force" in fails(capsys, one[1:], 2)
    assert main([*one, "--force"]) == 0
    assert {path.name for path in (place / "predictions" / "clip").iterdir()} == {"01-one", "predictions.json"}
    (place / "predictions" / "clip" / "notes.txt").write_text("mine")
    assert "also holds notes.txt" in fails(capsys, [*one[1:], "--force"], 2)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["clip"], 2, "--text"),
        (["clip", "--text", "a", "--text", " "], 2, "--text 2 of 2 is empty"),
        (["clip", "--text", "a\udcff"], 2, "not UTF-8"),
        (["clip", "--text", "a", "--answer", "\udcff [SEG]"], 2, "--answer is not UTF-8"),
        (["clip", "--text", "a", "--answer", "Sure."], 2, "needs one [SEG]"),
        (["clip", "--text", "a", "--out", ""], 2, "the folder you are in"),
        (["clip", "--text", "a", "--out", "runs"], 2, "exists already"),
        (["clip", "--text", "a", "--out", "clip/0.png"], 2, "is a file"),
        (["clip", "--text", "a", "--out", "clip/0.png/new"], 2, "nothing can be written there"),
        (["clip", "--text", "a", "--out", "clip"], 2, "exists already"),
        (["clip", "--text", "a", "--out", "clip", "--force"], 2, "also holds 0.png"),
        (["clip", "--text", "a", "--out", "/proc/foo/x"], 2, "--out /proc/foo/x: nothing can be written there"),
        (["clip", "--text", "a", "--out", "x" * 300], 2, "(File name too long)"),
        (["clip", "--text", "a", "--save-logits", "/proc/x.npz"], 2, "nothing can be written there"),
        (["clip", "--text", "a", "--fps", "nan"], 2, "--fps nan is no number between 0.1 and 1000"),
        (["clip", "--text", "a", "--fps", "0"], 2, "--fps 0.0 is no number between 0.1 and 1000"),
        (["clip", "--text", "a", "--write", "gif"], 2, "'gif' is not one of"),
        (["clip", "--text", "a", "--save-logits", "a.txt"], 2, "ends in .npz"),
        (["clip", "--text", "a", "--text", "b", "--save-logits", "a.npz"], 2, "of one --text, not of 2"),
        (["clip", "--text", "a", "--set", "windw=3"], 3, "did you mean window?"),
        (["clip", "--text", "a", "--run", "x"], 4, "x is not a run"),
        (["clip", "--text", "a", "--run", "first", "--checkpoint", "c"], 2, "give one of them"),
        (["nowhere", "--text", "a"], 4, "does not exist"),
        (["https://x.org/a.mp4", "--text", "a"], 2, "https://x.org/a.mp4 is a URL; download it first"),
        (["runs/first/run.json", "--text", "a"], 2, "neither a picture nor a video"),
        (["runs", "--text", "a"], 4, "holds no picture"),
    ],
)
def test_what_cannot_be_meant_is_said_before_a_model_is_loaded(arguments, status, words, capsys):
    assert words in fails(capsys, arguments, status)


def test_a_result_never_replaces_its_own_source(place, capsys):
    assert main(["predict", "clip", "--text", "a", "--out", "o"]) == 0
    line = fails(capsys, ["o/01-a/overlay.mp4", "--text", "a", "--out", "o", "--force"], 2)
    assert "which would be replaced" in line


def test_an_unreadable_frame_is_named_and_nothing_is_written(place, capsys):
    (place / "clip" / "1.png").write_bytes(b"\x89PNG")
    assert "1.png cannot be read" in fails(capsys, ["clip", "--text", "a"], 4, before_the_model=False)
    (place / "clip" / "0.png").write_bytes(b"\x89PNG")
    assert "0.png cannot be read" in fails(capsys, ["clip", "--text", "a"], 4)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("gone")])
def test_what_is_interrupted_leaves_nothing(place, capsys, monkeypatch, error):
    from salmacli.report import prediction_folder

    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr(prediction_folder, "write_overlays", stop)
    status = 130 if isinstance(error, KeyboardInterrupt) else 4
    fails(capsys, ["clip", "--text", "a"], status, before_the_model=False)


def test_logits_are_kept(place, capsys):
    asked = ["predict", "clip", "--text", "a", "--out", "o", "--save-logits", "o/a.npz"]
    assert main(asked) == 0
    arrays = np.load("o/a.npz")
    assert arrays["logits"].shape == (3, 1, 16, 16) and arrays["logits"].dtype == np.float32
    assert (
        arrays["embedding"].shape == (1, 6) and arrays["masks"].shape == (3, 20, 30) and arrays["masks"][2].sum() == 25
    )
    assert "exists already" in fails(capsys, asked[1:], 2)
    assert main([*asked, "--force"]) == 0 and Path("o/a.npz").exists()
    nothing = ["clip", "--text", "nothing", "--save-logits", "b.npz", "--answer", SEG]
    assert "no logits" in fails(capsys, nothing, 4, before_the_model=False)
