from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from salmacli.data.frames import frames_of, read_frame
from salmacli.errors import DataError


def picture(path, value=0, size=(20, 30), **options):
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(path, **options)
    return path


def test_a_folder_is_read_in_natural_order(tmp_path):
    for number in (10, 9, 1):
        picture(tmp_path / f"frame{number}.png", number)
    (tmp_path / "notes.txt").write_text("no picture")
    source = frames_of(tmp_path)
    assert source.names == ("frame1", "frame9", "frame10")
    assert [int(frame[0, 0, 0]) for frame in source] == [1, 9, 10]
    assert [frame.shape for frame in source] == [(20, 30, 3)] * len(source)
    assert source.size == (20, 30)


def test_grey_and_palette_pictures_become_rgb(tmp_path):
    Image.fromarray(np.full((4, 5), 7, dtype=np.uint8)).save(tmp_path / "grey.png")
    assert np.array_equal(read_frame(tmp_path / "grey.png"), np.full((4, 5, 3), 7))


def test_one_picture_is_a_source_of_one(tmp_path):
    assert len(frames_of(picture(tmp_path / "a.jpg"))) == 1


def test_a_video_file_is_read(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for value in (40, 120, 200):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), value, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    source = frames_of(tmp_path / "clip.mp4")
    assert source.names == ("00000", "00001", "00002")
    assert source.size == (16, 32)
    means = [frame.mean() for frame in source]
    assert np.allclose(means, [40, 120, 200], atol=6)
    assert [frame.mean() for frame in source] == means


def test_frames_of_different_sizes_are_refused(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", size=(21, 30))
    with pytest.raises(DataError, match=r"frame b .* is 21x30, the first is 20x30"):
        list(frames_of(tmp_path))


def test_a_truncated_jpeg_is_refused_by_name(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    with pytest.raises(DataError, match=r"a\.jpg cannot be read"):
        read_frame(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["text.jpg", "text.mp4"])
def test_what_is_no_picture_and_no_video_is_refused(tmp_path, name):
    (tmp_path / name).write_text("hello")
    with pytest.raises(DataError, match=r"cannot be read"):
        list(frames_of(tmp_path / name))


def test_missing_and_empty_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        frames_of(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no"):
        frames_of(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_frame(tmp_path / "a.jpg")


def test_real_frames(shared_data):
    source = frames_of(shared_data / "real_frames")
    assert source.size == (540, 960)
    assert len(source) == 50
