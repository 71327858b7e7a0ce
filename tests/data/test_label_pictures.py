"""Label pictures from strangers: read as numbers, or refused with one line and a kind."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from salmacli.data.label_pictures import LabelError, read_labels

LABELS = np.arange(12, dtype=np.uint8).repeat(40).reshape(20, 24)


def refused(path) -> LabelError:
    with pytest.raises(LabelError) as caught:
        read_labels(path)
    assert str(path) in str(caught.value)
    assert "; " in str(caught.value) and "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("colours", [[200, 0, 0] * 12, [9, 8, 7] * 256])
def test_a_palette_is_ignored(tmp_path, colours):
    picture = Image.fromarray(LABELS)
    picture.putpalette(colours)
    assert picture.mode == "P"
    picture.save(tmp_path / "a.png")
    found = read_labels(tmp_path / "a.png")
    assert found.dtype == np.uint8
    assert np.array_equal(found, LABELS)


def test_grey_and_black_and_white(tmp_path):
    Image.fromarray(LABELS).save(tmp_path / "grey.png")
    Image.fromarray(LABELS > 3).save(tmp_path / "bits.png")
    assert np.array_equal(read_labels(tmp_path / "grey.png"), LABELS)
    assert read_labels(tmp_path / "bits.png").dtype == np.uint8
    assert np.array_equal(read_labels(tmp_path / "bits.png"), LABELS > 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_are_no_labels(tmp_path, mode):
    Image.fromarray(LABELS).convert(mode).save(tmp_path / "a.png")
    error = refused(tmp_path / "a.png")
    assert error.kind == "mode"
    assert f"mode {mode}" in str(error)


def test_16_bits_are_no_labels(tmp_path):
    Image.fromarray(LABELS.astype(np.uint16) * 300).save(tmp_path / "a.png")
    assert refused(tmp_path / "a.png").kind == "mode"


def test_what_is_not_there(tmp_path):
    assert refused(tmp_path / "a.png").kind == "frame"
    (tmp_path / "b").write_text("")
    assert refused(tmp_path / "b" / "a.png").kind == "frame"


def test_cut_off_anywhere(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(LABELS).save(path)
    whole = path.read_bytes()
    end = whole.index(b"IEND")
    for length in range(0, end - 12, 3):
        path.write_bytes(whole[:length])
        assert refused(path).kind == "unreadable"


@pytest.mark.parametrize("content", ["text", "jpeg", "folder"])
def test_what_is_no_png(tmp_path, content):
    path = tmp_path / "a.png"
    if content == "text":
        path.write_text("not a picture")
    elif content == "jpeg":
        # JPEG changes values, so that its labels would be others.
        Image.fromarray(LABELS).save(path, "JPEG")
    else:
        path.mkdir()
    assert refused(path).kind == "unreadable"


def test_a_picture_far_too_large(tmp_path, monkeypatch):
    Image.fromarray(LABELS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    error = refused(tmp_path / "a.png")
    assert error.kind == "unreadable"
    assert "more pixels" in str(error)


def test_the_kind_comes_back_from_another_process(tmp_path):
    error = pickle.loads(pickle.dumps(refused(tmp_path / "a.png")))
    assert (error.kind, type(error)) == ("frame", LabelError)
