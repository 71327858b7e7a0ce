from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from salmacli.errors import DataError
from salmacli.report.overlays import RED, overlay, overlay_sheet, write_video


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


def test_a_sheet_shows_frames_from_first_to_last() -> None:
    frames, masks = _clip(count=30, height=50, width=60)
    frames = [np.full_like(frame, n * 8) for n, frame in enumerate(frames)]
    sheet = np.asarray(overlay_sheet(frames, [np.zeros_like(mask) for mask in masks], "the box"))
    greys = {int(value) for value in sheet.reshape(-1, 3)[:, 0]}
    for shown in (0, 29):
        assert shown * 8 in greys
    assert 2 * 8 not in greys  # 8 of 30 frames: 0, 4, 8, …


def test_a_sheet_grows_with_a_long_caption() -> None:
    frames, masks = _clip(count=2)
    short, long = overlay_sheet(frames, masks, "a"), overlay_sheet(frames, masks, "many words " * 60)
    assert long.height > short.height
    assert long.width == short.width


def test_a_sheet_needs_one_mask_per_frame() -> None:
    frames, masks = _clip()
    with pytest.raises(DataError, match="9 frames and 8 masks"):
        overlay_sheet(frames, masks[:-1], "x")
    with pytest.raises(DataError, match="0 frames"):
        overlay_sheet([], [], "x")


def test_a_video_plays_back_what_was_written(tmp_path: Path) -> None:
    frames, masks = _clip()
    write_video(tmp_path / "a" / "b.mp4", (overlay(f, m) for f, m in zip(frames, masks, strict=True)), fps=8)
    with av.open(str(tmp_path / "a" / "b.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8
        back = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    assert len(back) == 9
    assert back[0].shape == (52, 64, 3)  # 51 rows became even
    assert all(np.abs(a[:51].astype(int) - f).mean() < 20 for a, f in zip(back, frames, strict=True))
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b.mp4"]


def test_a_video_that_fails_leaves_nothing(tmp_path: Path) -> None:
    frames, _ = _clip()
    with pytest.raises(DataError, match="differ in size"):
        write_video(tmp_path / "a.mp4", [frames[0], frames[0][:20]])
    with pytest.raises(DataError, match="no frame"):
        write_video(tmp_path / "a.mp4", [])
    assert not list(tmp_path.iterdir())


def test_real_frames(shared_data: Path) -> None:
    frame = np.asarray(Image.open(sorted((shared_data / "real_frames").glob("*.jpg"))[0]).convert("RGB"))
    mask = np.zeros(frame.shape[:2], bool)
    mask[100:300, 200:500] = True
    sheet = overlay_sheet([frame] * 5, [mask] * 5, "the child who jumps")
    assert sheet.width > 800
