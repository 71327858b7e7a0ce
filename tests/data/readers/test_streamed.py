"""Parts of large JSON files: the same values as reading the file whole, whatever stretches it comes in."""

from __future__ import annotations

import json

import numpy as np
import pytest

from salmacli.data.readers import streamed
from salmacli.data.readers.streamed import parts, read_part
from salmacli.errors import DataError

VALUES = [
    {"id": "a", "text": 'Größe \U0001f600 \\ " \n', "list": [1, [2.5, -3e7], {"x": None}]},
    {},
    [],
    "ü" * 40,
    12345678901234567890,
    True,
    -0.5,
    {"ends": "]"},
]


@pytest.fixture(params=[1, 2, 3, 7, 1 << 22])
def chunk(request, monkeypatch):
    monkeypatch.setattr(streamed, "_CHUNK", request.param)


@pytest.mark.parametrize("style", [{}, {"ensure_ascii": False}, {"indent": 2}, {"separators": (",", ":")}])
def test_a_list_comes_part_by_part(tmp_path, chunk, style):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(VALUES, **style), encoding="utf-8")
    found = list(parts(path))
    assert [part.value for part in found] == VALUES
    assert [read_part(path, part.start, part.end) for part in found] == VALUES


def test_an_object_opens_the_lists_that_are_named(tmp_path, chunk):
    path = tmp_path / "object.json"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"info": [1, 2], "images": VALUES, "n": 12, "annotations": []}).encode()
    )
    found = list(parts(path, ("images", "annotations", "n")))
    assert [(part.key, part.value) for part in found] == [
        ("info", [1, 2]),
        *(("images", value) for value in VALUES),
        ("n", 12),
    ]
    assert all(read_part(path, part.start, part.end) == part.value for part in found)


def test_random_cuts_are_never_noticed(tmp_path, monkeypatch):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(VALUES * 3, ensure_ascii=False), encoding="utf-8")
    random = np.random.default_rng(0)
    for _ in range(20):
        monkeypatch.setattr(streamed, "_CHUNK", int(random.integers(1, 60)))
        assert [part.value for part in parts(path)] == VALUES * 3


FAULTS = {
    "cut off": ('[{"a": 1}, {"b": "x', "Unterminated string|Expecting", 1),
    "cut between": ('[{"a": 1}', "',' is needed here", 1),
    "no comma": ('[{"a": 1} {"b": 2}]', "',' is needed here", 1),
    "a word": ("[1, nothing]", "Expecting value", 1),
    "no number": ("[1, NaN]", "NaN is no number", 1),
    "too deep": ("[1, " + "[" * 200_000 + "]" * 200_000 + "]", "nests too deeply", 1),
    "another kind": ('"text"', "neither a list nor an object", 0),
    "empty": ("", "neither a list nor an object", 0),
    "something after": ("[1] 2", "something follows", 1),
    "key is a number": ('{1: "a"}', "a key is needed", 0),
    "no colon": ('{"a" "b"}', "':' is needed", 0),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_what_is_wrong_is_said_with_its_place(tmp_path, fault):
    text, message, before = FAULTS[fault]
    path = tmp_path / "broken.json"
    path.write_text(text)
    coming = parts(path)
    for _ in range(before):
        next(coming)
    with pytest.raises(DataError, match=message) as caught:
        next(coming)
    assert f"{path} is not valid JSON at byte" in str(caught.value)


def test_an_error_early_in_a_large_file_is_found_without_reading_it_whole(tmp_path, monkeypatch):
    path = tmp_path / "large.json"
    path.write_text('[{"a": 1}, {"a" 2}, ' + "0, " * 100_000 + "0]")
    monkeypatch.setattr(streamed, "_CHUNK", 64)
    reads = []
    more = streamed._Text._more
    monkeypatch.setattr(streamed._Text, "_more", lambda text, length: reads.append(length) or more(text, length))
    with pytest.raises(DataError, match="at byte 16"):
        list(parts(path))
    assert len(reads) < 3


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="is missing"):
        list(parts(tmp_path / "nothing.json"))
    with pytest.raises(DataError, match="cannot be read"):
        list(parts(tmp_path))
    (tmp_path / "latin.json").write_bytes('["Größe"]'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text near byte"):
        list(parts(tmp_path / "latin.json"))
    (tmp_path / "changed.json").write_text("[1]")
    with pytest.raises(DataError, match="not what it was"):
        read_part(tmp_path / "changed.json", 0, 2)
