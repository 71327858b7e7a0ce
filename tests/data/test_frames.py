from __future__ import annotations

import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from salmacli.data.frames import arrays, frame_size, frames_of, pictures, read_frame
from salmacli.errors import DataError, UsageError

RAMP = np.array([[0, 256, 257 * 7], [40_000, 65_535, 255]], np.uint16)  # upper bytes 0 1 7 156 255 0


def picture(path, value=0, size=(20, 30), **options):
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(path, **options)
    return path


def folder_of(path, count, size=(20, 30)):
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(path / f"{number:05d}.png", number, size)
    return path


def png_of_16_bits(path, values, colour):
    """Written by hand: Pillow writes grey ones only."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def test_a_folder_is_read_in_natural_order(tmp_path):
    for number in (10, 9, 1):
        picture(tmp_path / f"frame{number}.png", number)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._frame1.png").write_text("what a Mac leaves on foreign disks")
    (tmp_path / "masks.png").mkdir()
    source = frames_of(tmp_path)
    assert source.names == ("frame1", "frame9", "frame10")
    assert [int(frame[0, 0, 0]) for frame in source] == [1, 9, 10]
    assert [frame.shape for frame in source] == [(20, 30, 3)] * len(source)
    assert source.size == (20, 30) and not source.still and source.fps is None


def test_frames_are_read_in_any_order(tmp_path):
    source = frames_of(folder_of(tmp_path / "frame s ünï", 12))
    for numbers in (range(12), range(11, -1, -1), [3, 3, 0, 11, 5, 3], [], [-1]):
        found = [int(frame[0, 0, 0]) for frame in source.read(numbers, threads=3, ahead=2)]
        assert found == [number % 12 for number in numbers]
    assert int(source[4][0, 0, 0]) == 4 and int(source[-1][0, 0, 0]) == 11
    with pytest.raises(IndexError):
        source[12]


def test_what_follows_reading_runs_in_the_reading_threads(tmp_path):
    source = frames_of(folder_of(tmp_path, 6))
    names = list(source.read(range(6), lambda frame: (int(frame[0, 0, 0]), threading.current_thread().name)))
    assert [number for number, _ in names] == list(range(6))
    assert threading.current_thread().name not in {name for _, name in names}


def test_reading_never_holds_more_than_the_look_ahead(tmp_path, monkeypatch):
    read, taken = [], 0
    monkeypatch.setattr(
        "salmacli.data.frames.read_frame", lambda path, upright: read.append(path) or np.zeros((20, 30, 3), np.uint8)
    )
    for taken, _ in enumerate(frames_of(folder_of(tmp_path, 40)).read(range(40), ahead=5), 1):
        assert len(read) <= taken + 5
    assert taken == len(read) == 40  # each once


@pytest.mark.parametrize("spoil", [lambda b: b[:60], lambda b: b"hello", lambda b: b""])
def test_a_frame_that_is_broken_fails_at_its_place(tmp_path, spoil):
    folder_of(tmp_path, 6)
    broken = tmp_path / "00003.png"
    broken.write_bytes(spoil(broken.read_bytes()))
    for numbers, whole in (([0, 1, 2, 3, 4, 5], 3), ([5, 4, 3, 2], 2), ([2, 5, 3], 2)):
        frames = frames_of(tmp_path).read(numbers)
        assert [int(next(frames)[0, 0, 0]) for _ in range(whole)] == numbers[:whole]
        with pytest.raises(DataError, match=r"00003\.png cannot be read"):
            next(frames)


def test_frames_of_different_sizes_are_refused(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", size=(21, 30))
    picture(tmp_path / "c.png")
    source = frames_of(tmp_path)
    with pytest.raises(DataError, match=r"frame b .* is 30x21, the first is 30x20"):
        list(source)
    with pytest.raises(DataError, match=r"frame b .* is 30x21, the first is 30x20"):
        source[1]
    assert len(list(source.read([2, 0]))) == 2


def test_a_frame_that_is_there_twice_is_refused(tmp_path):
    picture(tmp_path / "00001.png")
    picture(tmp_path / "00001.jpg")
    with pytest.raises(DataError, match=r"00001\.jpg and 00001\.png, one frame twice"):
        frames_of(tmp_path)


def test_links_are_followed_and_broken_ones_are_not_left_out(tmp_path):
    real = folder_of(tmp_path / "real", 2)
    (tmp_path / "linked").mkdir()
    for name, target in (("0", "00001.png"), ("1", "gone.png")):
        (tmp_path / "linked" / f"{name}.png").symlink_to(real / target)
    (tmp_path / "all").symlink_to(real)
    assert len(frames_of(tmp_path / "all")) == 2
    frames = iter(frames_of(tmp_path / "linked"))
    assert int(next(frames)[0, 0, 0]) == 1
    with pytest.raises(DataError, match=r"1\.png does not exist"):
        next(frames)


def test_every_kind_of_8_bits_becomes_rgb(tmp_path):
    colour = np.full((4, 5, 3), (200, 60, 20), np.uint8)
    whole = Image.fromarray(colour)
    grey = Image.fromarray(np.full((4, 5), 7, np.uint8))
    grey.save(tmp_path / "L.png")
    grey.convert("1").save(tmp_path / "1.png")
    grey.convert("LA").save(tmp_path / "LA.png")
    whole.quantize(4).save(tmp_path / "P.png")
    whole.convert("RGBA").quantize(4).save(tmp_path / "PA.png", transparency=b"\x10\x20")
    whole.putalpha(10)
    whole.save(tmp_path / "RGBA.png")
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "CMYK.jpg", quality=95)
    for suffix in ("webp", "bmp", "tif"):
        Image.fromarray(colour).save(tmp_path / f"RGB.{suffix}", lossless=True)
    expected = {"L.png": 7, "LA.png": 7, "1.png": 0}
    for file in tmp_path.iterdir():
        found = read_frame(file)
        assert found.dtype == np.uint8 and np.abs(found.astype(int) - expected.get(file.name, colour)).max() <= 4, file
        assert len(frames_of(file)) == 1 and frames_of(file).still


@pytest.mark.filterwarnings("error")
def test_of_16_bits_the_upper_8_are_kept(tmp_path):
    upper = (RAMP >> 8).astype(np.uint8)
    for name, colour, channels in (("grey", 0, 1), ("rgb", 2, 3), ("grey+alpha", 4, 2), ("rgba", 6, 4)):
        values = np.repeat(RAMP[..., None], channels, axis=2)
        found = read_frame(png_of_16_bits(tmp_path / f"{name}.png", values, colour))
        assert np.array_equal(found, np.repeat(upper[..., None], 3, axis=2)), name
    Image.fromarray(RAMP).save(tmp_path / "grey.tif")
    assert np.array_equal(read_frame(tmp_path / "grey.tif")[..., 0], upper)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_that_are_no_picture_are_refused(tmp_path, kind):
    Image.fromarray(RAMP.astype(kind)).save(tmp_path / "depth.tif")
    with pytest.raises(DataError, match=r"depth\.tif holds [IF] values, not 8 or 16 bits"):
        read_frame(tmp_path / "depth.tif")


def test_a_photo_stands_upright_for_users_and_lies_as_stored_for_benchmarks(tmp_path):
    stored = np.zeros((20, 30, 3), np.uint8)
    stored[:10] = 200
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a viewer turns it clockwise
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    source = frames_of(tmp_path)
    assert source.size == source[0].shape[:2] == (30, 20)
    assert np.array_equal(source[0], np.rot90(stored, -1))
    assert np.array_equal(pictures([tmp_path / "a.png"], tmp_path)[0], stored)
    assert np.array_equal(read_frame(tmp_path / "a.png"), stored) and frame_size(tmp_path / "a.png") == (20, 30)


def test_an_animation_is_no_frame(tmp_path):
    steps = [Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (10, 200)]
    for suffix in ("webp", "png", "tif"):
        steps[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=steps[1:])
        with pytest.raises(DataError, match="holds several pictures"):
            frames_of(tmp_path / f"a.{suffix}")[0]


def test_arrays_are_frames(tmp_path):
    frames = [np.full((4, 5, 3), value, np.uint8) for value in range(3)]
    source = arrays(frames)
    assert (source.names, source.size, source.still) == (("00000", "00001", "00002"), (4, 5), False)
    assert all(found is given for found, given in zip(source, frames, strict=True))
    assert arrays(frames[:1], still=True).still
    for wrong, words in ((frames[0] / 255, "float64"), (frames[0][..., 0], r"\(4, 5\)"), ([1], "list")):
        with pytest.raises(DataError, match=rf"frame 1 is .*{words}"):
            arrays([frames[0], wrong])[1]


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


@pytest.mark.parametrize("url", ["http://x.org/a.mp4", "https://x.org/a", "s3://bucket/a.png", "rtsp://camera"])
def test_urls_are_to_be_downloaded_first(url, tmp_path):
    from pathlib import Path

    for given in (url, Path(url)):
        with pytest.raises(UsageError, match=f"^{url} is a URL; download it first"):
            frames_of(given)


def test_a_name_that_no_file_can_have():
    with pytest.raises(DataError, match="cannot be read"):
        frames_of("x" * 300 + ".mp4")


def test_missing_empty_and_unknown_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        frames_of(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no"):
        frames_of(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_frame(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("hello")  # FFmpeg would film it
    with pytest.raises(UsageError, match="neither a picture nor a video by its name"):
        frames_of(tmp_path / "notes.txt")


def test_real_frames(shared_data):
    source = frames_of(shared_data / "real_frames")
    assert source.size == (540, 960)
    assert len(source) == 50
