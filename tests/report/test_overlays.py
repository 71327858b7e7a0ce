from __future__ import annotations

import threading
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from salmacli.data.frames import FrameSource, arrays, frames_of
from salmacli.engine.progress import Silent
from salmacli.errors import DataError
from salmacli.report.overlays import RED, Layer, Sheet, colour_of, drawn, overlay, strip, video, write_overlays


def overlay_sheet(source: FrameSource, layers: list[Layer]):
    sheet = Sheet(source, layers)
    for number in sheet.numbers:
        sheet.add(number, drawn(source[number], number, layers))
    return sheet.picture


def overlay_frames(source: FrameSource, layers: list[Layer]):
    above = strip(source.size, layers)
    return [drawn(frame, number, layers, above) for number, frame in enumerate(source)]


def _clip(count: int = 9, height: int = 51, width: int = 64) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Grey frames that grow brighter, and a box that moves."""
    frames = [np.full((height, width, 3), (40 + 20 * n) % 256, np.uint8) for n in range(count)]
    masks = [np.zeros((height, width), bool) for _ in range(count)]
    for n, mask in enumerate(masks):
        mask[10:30, 2 * n : 2 * n + 20] = True
    return frames, masks


def test_only_the_mask_changes_and_its_edge_is_drawn() -> None:
    frames, masks = _clip()
    before = frames[0].copy()
    drawn = overlay(frames[0], masks[0])
    assert (frames[0] == before).all()
    assert (drawn[~masks[0]] == before[~masks[0]]).all()
    assert (drawn[10, 5] == RED).all()
    inside = drawn[20, 10].astype(float)
    assert np.allclose(inside, 0.55 * 40 + 0.45 * np.array(RED), atol=1)


def test_an_empty_mask_leaves_the_frame() -> None:
    frames, masks = _clip()
    assert (overlay(frames[3], np.zeros_like(masks[3])) == frames[3]).all()


def test_sizes_must_agree() -> None:
    frames, _ = _clip()
    with pytest.raises(DataError, match="64x20 mask, 64x51 frame"):
        overlay(frames[0], np.ones((20, 64), bool))


def test_a_mask_may_touch_the_border() -> None:
    frame = np.full((20, 30, 3), 100, np.uint8)
    drawn = overlay(frame, np.ones((20, 30), bool))
    edge = np.ones((20, 30), bool)
    edge[1:-1, 1:-1] = False
    assert (drawn[edge] == RED).all() and (drawn[~edge] != RED).any(axis=1).all()


def _layers(masks: list[np.ndarray], texts: list[str]) -> list[Layer]:
    return [Layer(text, masks.__getitem__, colour_of(number)) for number, text in enumerate(texts)]


def test_a_sheet_shows_frames_from_first_to_last_and_reads_no_others(tmp_path: Path) -> None:
    class Counting(list):
        def __getitem__(self, number):
            read.append(number)
            return super().__getitem__(number)

    read: list[int] = []
    frames = Counting(np.full((50, 60, 3), n * 8, np.uint8) for n in range(30))
    layers = _layers([np.zeros((50, 60), bool)] * 30, ["the box"])
    write_overlays(arrays(frames), {tmp_path: layers}, True, None, Silent())
    sheet = np.asarray(Image.open(tmp_path / "overlay.png"))
    greys = {int(value) for value in sheet.reshape(-1, 3)[:, 0]}
    assert {0, 29 * 8} < greys and 2 * 8 not in greys  # 8 of 30 frames: 0, 4, 8, …
    assert sorted(set(read)) == [0, 4, 8, 12, 17, 21, 25, 29]


def test_a_sheet_grows_with_a_long_caption() -> None:
    frames, masks = _clip(count=2)
    short, long = (overlay_sheet(arrays(frames), _layers(masks, [text])) for text in ("a", "many words " * 60))
    assert long.height > short.height
    assert long.width == short.width


def test_a_sheet_of_several_sentences_has_each_in_its_colour() -> None:
    frames, masks = _clip(count=3)
    other = [np.roll(mask, 20, axis=0) for mask in masks]
    layers = [Layer("a", masks.__getitem__, colour_of(0)), Layer("b", other.__getitem__, colour_of(1))]
    sheet = np.asarray(overlay_sheet(arrays(frames), layers))
    assert all((sheet == colour_of(n)).all(axis=2).sum() > 200 for n in (0, 1))
    assert not (sheet == colour_of(2)).all(axis=2).any()


def test_a_sheet_needs_a_frame() -> None:
    with pytest.raises(DataError, match="no frames"):
        overlay_sheet(arrays([]), [Layer("a", lambda n: np.zeros((1, 1), bool))])


@pytest.mark.parametrize("size", [(180, 320), (1080, 1920), (640, 360), (20, 600), (5, 7), (1, 1)])
@pytest.mark.parametrize("count", [1, 3, 200])
def test_frames_keep_their_pixels_under_a_strip_of_one_height(size, count) -> None:
    frames = [np.full((*size, 3), 100, np.uint8)] * 2
    masks = [np.zeros(size, bool)] * 2
    drawn = list(overlay_frames(arrays(frames), _layers(masks, ["the red circle that moves"] * count)))
    assert len({frame.shape for frame in drawn}) == 1 and drawn[0].shape[1:] == (size[1], 3)
    strip = drawn[0].shape[0] - size[0]
    assert 13 < strip <= max(60, 0.6 * size[0])
    assert all((frame[strip:] == 100).all() for frame in drawn)
    if size[1] >= 300:
        assert (drawn[0][:strip] < 80).any()  # ink


def test_each_sentence_has_its_colour_in_every_frame() -> None:
    frames, masks = _clip(count=2)
    other = [np.roll(mask, 20, axis=0) for mask in masks]
    layers = [Layer("a", masks.__getitem__, colour_of(0)), Layer("b", other.__getitem__, colour_of(1))]
    for number, frame in enumerate(overlay_frames(arrays(frames), layers)):
        picture = frame[-51:]
        for layer in layers:
            rows, columns = np.nonzero((picture == layer.colour).all(axis=2))
            inside = np.flatnonzero(layer.mask(number).any(axis=1))
            assert (rows.min(), rows.max()) == (inside[0], inside[-1]) and columns.min() == 2 * number


def test_overlays_of_all_sentences_are_one_stream(tmp_path: Path) -> None:
    """Frames are read once for 8 sentences, and never far ahead of what is drawn."""
    read, ahead, seen = [], [], []

    class Counting(list):
        def __getitem__(self, number):
            read.append(number)
            return super().__getitem__(number)

    def mask(number: int) -> np.ndarray:
        seen.append(number)
        ahead.append(len(read) - len(seen) / 8)
        return np.zeros((8, 8), bool)

    source = arrays(Counting([np.zeros((8, 8, 3), np.uint8)] * 60))
    assert source.size == (8, 8)
    read.clear()
    before = threading.active_count()
    places = {tmp_path / str(n): [Layer("a", mask, colour_of(n))] for n in range(9)}
    write_overlays(source, places, True, 10, Silent())
    assert sorted(read) == sorted(2 * [*range(60)]) and max(ahead[: 8 * 60]) < 30
    assert threading.active_count() == before
    for place in places:
        assert {file.name for file in place.iterdir()} == {"overlay.png", "overlay.mp4"}
    with av.open(str(tmp_path / "8" / "overlay.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 60


def test_a_video_plays_back_what_was_written(tmp_path: Path) -> None:
    frames, masks = _clip()
    with video(tmp_path / "b.mp4", fps=8) as write:
        for f, m in zip(frames, masks, strict=True):
            write(overlay(f, m))
    with av.open(str(tmp_path / "b.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8
        back = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert len(back) == 9
    assert back[0].shape == (52, 64, 3)  # 51 rows became even
    assert all(np.abs(a[:51].astype(int) - f).mean() < 20 for a, f in zip(back, frames, strict=True))


def test_a_video_has_frames_of_one_size(tmp_path: Path) -> None:
    frames, _ = _clip()
    with video(tmp_path / "a.mp4") as write:
        write(frames[0])
        with pytest.raises(DataError, match="differ in size"):
            write(frames[0][:20])
    with pytest.raises(DataError, match="no frame"), video(tmp_path / "a.mp4"):
        pass


def test_real_frames(shared_data: Path) -> None:
    source = frames_of(shared_data / "real_frames")
    mask = np.zeros(source.size, bool)
    mask[100:300, 200:500] = True
    sheet = overlay_sheet(source, [Layer("the child who jumps", lambda number: mask)])
    assert sheet.width > 800
