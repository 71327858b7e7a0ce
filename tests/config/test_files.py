from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salmacli.config import files
from salmacli.config.files import read_json, safe_name, sha256, write_atomic, write_json
from salmacli.errors import DataError


def test_json_round_trip_makes_folders(tmp_path: Path) -> None:
    content = {"ä": [1, 2.5, None, True], "b": {"c": "x"}}
    write_json(tmp_path / "a" / "b.json", content)
    assert read_json(tmp_path / "a" / "b.json") == content


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"J": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
def test_new_files_are_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{\n  "a": 1,\n  oops\n}', "line 3, column 3"),
        (b"", "line 1, column 1"),
        (b"\xff\xfe", "not UTF-8 text at byte 0"),
        (b"[" * 200_000, "nests its JSON too deeply"),
    ],
)
def test_broken_json_says_where(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_json_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing; "):
        read_json(tmp_path / "no.json")
    with pytest.raises(DataError, match=r"is a folder|cannot be read"):  # Windows calls it a permission
        read_json(tmp_path)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


@pytest.mark.parametrize("name", ["00001", "blackswan", "a b", "ä.é", "..a", "a..b", "-x"])
def test_plain_names_pass(name: str) -> None:
    assert safe_name(name, "meta.json") == name


@pytest.mark.parametrize("name", ["", ".", "..", "/etc", "a/b", "../a", "a\\b", "C:", "a\0b", "a\nb"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"meta.json: videos"):
        safe_name(name, "meta.json: videos")


@given(st.text())
def test_a_safe_name_stays_in_its_folder(name: str) -> None:
    try:
        safe_name(name, "x")
    except DataError:
        return
    assert Path(os.path.normpath(Path("/root") / name)).parent == Path("/root")
