from __future__ import annotations

import json
from pathlib import Path

import pytest

from salmacli.data.synthetic import make as making
from salmacli.data.synthetic.make import check_synthetic, ensure_synthetic, make
from salmacli.errors import DataError

SIZES = {"train": 27, "valid": 2, "held_out": 3}


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class Counting:
    def __init__(self):
        self.total = self.done = 0

    def start(self, task, total, done=0):
        self.total = total

    def advance(self, n=1, **figures):
        self.done += n

    def finish(self):
        pass


def test_the_same_seed_gives_the_same_bytes_however_many_processes(tmp_path):
    progress = Counting()
    first = contents(make(tmp_path / "a", 5, SIZES, processes=1, progress=progress))
    assert (progress.total, progress.done) == (32, 32)
    second = contents(make(tmp_path / "elsewhere" / "b", 5, SIZES, processes=2))
    assert sorted(first) == sorted(second)
    assert [name for name in first if first[name] != second[name]] == []


def test_another_seed_gives_other_videos_and_more_videos_keep_the_first(synthetic, tmp_path):
    name = "mevis/train/JPEGImages/train0000/00000.jpg"
    sizes = {"train": 2, "valid": 1, "held_out": 1}
    other = make(tmp_path / "a", 4, sizes, processes=1)
    same = make(tmp_path / "b", 3, sizes, processes=1)
    assert (synthetic / name).read_bytes() == (same / name).read_bytes() != (other / name).read_bytes()


def test_no_held_out_pair_in_training_files(synthetic):
    from salmacli.data.synthetic.scene import HELD_OUT

    for name in ("mevis/train", "mevis/valid"):
        text = (synthetic / name / "meta_expressions.json").read_text()
        assert not any(f"{colour} {shape}" in text for colour, shape in HELD_OUT)


def test_frames_are_stored_once(synthetic):
    frame = synthetic / "mevis/train/JPEGImages/train0000/00000.jpg"
    linked = synthetic / "revos/train0000/00000.jpg"
    assert linked.read_bytes() == frame.read_bytes()
    if frame.stat().st_nlink > 1:
        assert linked.samefile(frame)


def test_what_is_there_is_reused(synthetic, monkeypatch):
    monkeypatch.setattr(making, "make", lambda *_, **__: pytest.fail("made again"))
    assert ensure_synthetic(synthetic) == synthetic
    marker = check_synthetic(synthetic)
    assert (marker["seed"], marker["videos"]) == (3, {"train": 5, "valid": 2, "held_out": 4})


@pytest.fixture
def small(tmp_path) -> Path:
    return make(tmp_path / "small", 0, {"train": 1, "valid": 1, "held_out": 1}, processes=1)


def test_a_changed_file_is_noticed(small):
    path = small / "mevis" / "train" / "mask_dict.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(DataError, match=r"mask_dict\.json is missing or not as it was made; delete .* salma data make"):
        ensure_synthetic(small)


def test_another_version_is_refused(small):
    marker = json.loads((small / "synthetic.json").read_text())
    (small / "synthetic.json").write_text(json.dumps({**marker, "version": 0}))
    with pytest.raises(DataError, match="version 0 of the synthetic benchmark, needed is"):
        ensure_synthetic(small)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not a synthetic benchmark"):
        ensure_synthetic(tmp_path)
    with pytest.raises(DataError, match="not empty"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_make_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "write_layouts", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a", 0, {"train": 1, "valid": 1, "held_out": 1}, processes=1)
    assert list(tmp_path.iterdir()) == []


def test_sizes_must_be_positive(tmp_path):
    with pytest.raises(DataError, match="positive"):
        make(tmp_path / "a", 0, {"train": 0})
