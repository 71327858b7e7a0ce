from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from salmacli.data.synthetic import make as making
from salmacli.data.synthetic.make import check_synthetic, ensure_synthetic, make, open_synthetic
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


@pytest.mark.slow
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


def change_marker(root: Path, **facts) -> None:
    marker = json.loads((root / "synthetic.json").read_text())
    (root / "synthetic.json").write_text(json.dumps({**marker, **facts}))


def test_a_newer_version_is_refused(small):
    change_marker(small, version=making.VERSION + 1)
    with pytest.raises(DataError, match=f"version {making.VERSION + 1} of the synthetic benchmark, needed is"):
        ensure_synthetic(small)


def make_older(root: Path) -> None:
    """As version 1 left it, without gRefCOCO."""
    shutil.rmtree(root / "refcoco" / "ref_seg" / "grefcoco")
    files = json.loads((root / "synthetic.json").read_text())["files"]
    change_marker(root, version=1, files={name: one for name, one in files.items() if "grefcoco" not in name})


def test_an_older_version_is_made_again_as_it_was(tmp_path):
    root = make(tmp_path / "a", 7, {"train": 2, "valid": 1, "held_out": 1}, processes=1)
    new = contents(root)
    make_older(root)
    (root / "sheets").mkdir()
    (root / "sheets" / "mine.png").write_bytes(b"kept")
    with pytest.raises(DataError, match="version 1 of the synthetic benchmark, needed is"):
        check_synthetic(root)
    assert open_synthetic("grefcoco", root, "train").synthetic
    assert contents(root) == {**new, "sheets/mine.png": b"kept"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_older_version_that_somebody_changed_stays(small):
    make_older(small)
    path = small / "mevis" / "train" / "mask_dict.json"
    path.write_text(path.read_text() + " ")
    before = contents(small)
    with pytest.raises(DataError, match="not as it was made"):
        ensure_synthetic(small)
    assert contents(small) == before


def test_an_older_version_stays_where_making_fails(small, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left")

    make_older(small)
    before = contents(small)
    monkeypatch.setattr(making, "make", fail)
    with pytest.raises(DataError, match=r"version 1 .* cannot be put in its place \(no space left\); delete"):
        ensure_synthetic(small)
    assert contents(small) == before
    assert [path.name for path in small.parent.iterdir()] == [small.name]


@pytest.mark.parametrize("facts", [{"version": None}, {"seed": "x"}, {"videos": 5}, {"files": []}])
def test_a_broken_marker_is_refused(small, facts):
    change_marker(small, **facts)
    with pytest.raises(DataError, match=r"synthetic\.json is not as it was made; delete"):
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
