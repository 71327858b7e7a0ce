"""Video files: whichever frame is asked for, it is the one that decoding from the beginning gives."""

from __future__ import annotations

import socket
import threading
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.stream import Disposition

from salmacli.data import video_file
from salmacli.data.frames import frames_of
from salmacli.errors import DataError

# Long groups with B-frames, open groups, hidden frames, timestamps that start late, a container without an index.
KINDS = {
    "long.mp4": ("libx264", {"g": "250", "bf": "3", "sc_threshold": "0"}),
    "open.mp4": ("libx264", {"g": "16", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "refresh.mov": ("libx264", {"g": "20", "x264-params": "intra-refresh=1"}),
    "stream.ts": ("mpeg2video", {"g": "12", "bf": "2"}),
    "hidden.webm": ("libvpx-vp9", {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "10", "cpu-used": "8"}),
    "old.avi": ("mpeg4", {"g": "12", "bf": "2"}),
}


def film(
    path: Path, codec: str = "libx264", frames: int = 50, *, size=(48, 64), times=None, form=None, pack=None, **options
) -> Path:
    """Noise that moves, so that every frame differs from all others and none is cheap to predict."""
    noise = np.random.default_rng(0).integers(0, 255, (size[0], size[1] + 3 * frames, 3), dtype=np.uint8)
    with av.open(str(path), "w", form, options=pack or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.options = *size, "yuv420p", options
        for number in range(frames):
            window = np.ascontiguousarray(noise[:, 3 * number : 3 * number + size[1]])
            frame = av.VideoFrame.from_ndarray(window, format="rgb24")
            frame.pts, frame.time_base = times[number] if times else number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for name, (codec, options) in KINDS.items():
        film(folder / name, codec, **options)
    return folder


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From which frame the file was decoded, each time that was begun anew."""
    begun: list[int] = []
    decode = video_file._decoded
    monkeypatch.setattr(
        video_file, "_decoded", lambda path, index, start: begun.append(start) or decode(path, index, start)
    )
    return begun


def test_a_video_file_tells_its_frames_size_and_rate(films):
    source = frames_of(films / "long.mp4")
    assert (len(source), source.size, source.fps, source.still) == (50, (48, 64), 10.0, False)
    assert source.names[:2] == ("00000", "00001")


@pytest.mark.parametrize("name", KINDS)
def test_any_order_gives_the_same_frames(films, name):
    source = frames_of(films / name)
    whole = list(source)
    assert len({frame.tobytes() for frame in whole}) == len(source) == 50
    shuffled = np.random.default_rng(1).permutation(50)[:25].tolist()
    for numbers in (range(49, -1, -1), shuffled, [7, 7, 6, 7, 48], range(3, 50, 9)):
        found = source.read(numbers, ahead=6)
        assert all(np.array_equal(frame, whole[n]) for n, frame in zip(numbers, found, strict=True))
    assert all(np.array_equal(source[n], whole[n]) for n in (49, 0, 31))


@pytest.mark.parametrize("name", KINDS)
def test_packets_tell_the_same_frames_as_decoding(films, name, monkeypatch):
    whole = video_file.VideoFile(films / name)
    monkeypatch.setattr(video_file, "_counted", None)  # nothing needs to be decoded to count them
    listed = video_file.VideoFile(films / name, whole=False)
    assert (listed.names, listed.size, listed.fps) == (whole.names, whole.size, whole.fps)
    for numbers in ([1, 17, 49, 30], [7, 7, 6, 7, 48]):
        for a, b in zip(listed.read(numbers), whole.read(numbers), strict=True):
            assert np.array_equal(a, b)


def test_a_damaged_frame_says_so_when_it_is_read(tmp_path, monkeypatch):
    path = film(tmp_path / "hurt.mp4", g="12")
    with av.open(str(path)) as container:
        place, size = [(packet.pos, packet.size) for packet in container.demux() if packet.size][20]
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + bytes(size) + whole[place + size :])
    with pytest.raises(DataError, match=r"frame \d+ of .*hurt\.mp4 cannot be decoded"):
        video_file.VideoFile(path)
    source = video_file.VideoFile(path, whole=False)
    assert len(source) == 50 and source[3].shape == (48, 64, 3)
    with pytest.raises(DataError, match=r"hurt\.mp4 cannot be read \(Invalid data"):
        list(source)
    # Where the decoder mends what it can, it says of the frame that it did.
    mended = SimpleNamespace(is_corrupt=True)
    monkeypatch.setattr(video_file, "_decoded", lambda path, index, start: (pair for pair in [(3, mended)]))
    with pytest.raises(DataError, match=r"frame 00003 of .*hurt\.mp4 is damaged"):
        source[3]


def test_where_packets_do_not_tell_frames_apart_they_are_decoded(tmp_path, monkeypatch):
    path = film(tmp_path / "raw.h264", form="h264")
    counted = []
    count = video_file._counted
    monkeypatch.setattr(video_file, "_counted", lambda path: counted.append(path) or count(path))
    source = video_file.VideoFile(path, whole=False)
    assert (len(source), counted) == (50, [path])


def test_ascending_frames_are_decoded_once_and_far_ones_sought(tmp_path, openings):
    source = frames_of(film(tmp_path / "a.mp4", frames=120, g="20", sc_threshold="0"))
    assert len(list(source)) == len(list(source.read(range(0, 120, 7)))) + 102
    assert openings == [0, 0]
    openings.clear()
    assert source[107].shape == (48, 64, 3)
    assert len(list(source.read([2, 90]))) == 2
    assert openings == [100, 0, 80]
    openings.clear()
    assert len(list(source.read(range(119, -1, -1), ahead=40))) == 120  # three blocks
    assert openings == [80, 40, 0]


def test_without_useful_timestamps_it_counts(tmp_path, monkeypatch, openings):
    source = frames_of(film(tmp_path / "a.mp4", g="10"))
    whole = list(source)
    blind = video_file._Index(50, (48, 64), None, (), [0])
    source._index = blind
    openings.clear()
    numbers = [40, 3, 2]
    assert all(np.array_equal(f, whole[n]) for n, f in zip(numbers, source.read(numbers, ahead=1), strict=True))
    assert openings == [0, 0, 0]


@pytest.mark.parametrize(("codec", "form"), [("libx264", "h264"), ("mpeg2video", "mpeg2video"), ("libx264", "avi")])
def test_streams_without_or_with_invented_timestamps(tmp_path, codec, form):
    source = frames_of(film(tmp_path / "raw.ts", codec, form=form, bf="2", g="12"))
    assert len(source) == 50 and bool(source._index.times) == (form == "mpeg2video")
    whole = list(source)
    numbers = [44, 3, 21, 20]
    assert all(np.array_equal(f, whole[n]) for n, f in zip(numbers, source.read(numbers, ahead=1), strict=True))


def test_seeks_that_land_anywhere_else_cost_time_only(films, monkeypatch):
    """A container that finds no key frame: decoding starts from the beginning."""
    source = frames_of(films / "open.mp4")
    whole = list(source)
    spoilt = [time + 1 for time in source._index.times]
    source._index = video_file._Index(50, (48, 64), None, spoilt, source._index.keys)
    assert np.array_equal(source[45], whole[45])


def test_what_precedes_a_key_frame_is_not_trusted(films, monkeypatch):
    """A container that seeks into the middle of a group: what the decoder makes of that is no frame of the film."""
    source = frames_of(films / "long.mp4")
    source._index = video_file._Index(50, (48, 64), None, list(range(50)), [0, 16, 32])
    whole = list(source)

    class Middle:
        def seek(self, time: int, stream: object) -> None:
            self.place = time + 4

        def decode(self, stream: object) -> list:
            grey = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            return [
                SimpleNamespace(pts=n, key_frame=n == 32, to_ndarray=grey.to_ndarray) for n in range(self.place, 50)
            ]

    opened = video_file._opened
    began = iter([False, True])  # the seek, then from the beginning
    monkeypatch.setattr(
        video_file, "_opened", lambda path: opened(path) if next(began) else nullcontext((Middle(), None))
    )
    assert np.array_equal(source[25], whole[25])


def test_frames_come_at_their_own_times(tmp_path):
    times = [0, 1, 2, 5, 9, 30, 31, 60]
    source = frames_of(film(tmp_path / "a.mkv", frames=8, times=times, g="3"))
    whole = list(source)
    assert len(whole) == 8
    assert all(np.array_equal(a, whole[n]) for n, a in zip([7, 2, 5], source.read([7, 2, 5], ahead=1), strict=True))


def test_a_reader_that_stops_early_lets_go_of_the_file(films):
    before = threading.active_count()
    frames = frames_of(films / "long.mp4").read(range(50))
    next(frames)
    frames.close()
    assert threading.active_count() == before


def test_a_video_that_is_not_whole_is_refused_at_once(tmp_path):
    def cut(path: Path, share: float) -> Path:
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        return path

    with pytest.raises(DataError, match=r"plain\.mp4 cannot be read"):
        frames_of(cut(film(tmp_path / "plain.mp4"), 0.7))
    fast = cut(film(tmp_path / "fast.mp4", pack={"movflags": "faststart"}), 0.7)
    for opened in (frames_of, lambda path: video_file.VideoFile(path, whole=False)):
        with pytest.raises(DataError, match=r"fast\.mp4 breaks off or is damaged after \d\d frames; download"):
            opened(fast)
    with pytest.raises(DataError, match=r"a\.webm breaks off after \d\d frames, 5 s long"):
        frames_of(cut(film(tmp_path / "a.webm", "libvpx"), 0.5))


def test_a_file_without_a_video_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 48, "yuvj420p", Disposition.attached_pic.value
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(cover.encode(av.VideoFrame(64, 48, "yuvj420p")) + cover.encode())
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=r"sound\.mp4 holds no video"):
        frames_of(tmp_path / "sound.mp4")


def test_a_playlist_under_a_videos_name_leads_nowhere(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n")
        with pytest.raises(DataError, match=r"list\.mp4"):
            frames_of(tmp_path / "list.mp4")
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()


@pytest.mark.parametrize("name", ["with space.mp4", "clip:1.mp4", "vidéo 影片.MP4", "%03d.mp4"])
def test_names_are_names(tmp_path, monkeypatch, name):
    film(tmp_path / "a.mp4", frames=2).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(frames_of(tmp_path / name)) == len(frames_of(name)) == 2


@pytest.mark.parametrize("size", [(64, 48), (2, 2), (50, 34)])
def test_one_frame_and_any_shape(tmp_path, size):
    source = frames_of(film(tmp_path / "a.mp4", frames=1, size=size))
    assert len(source) == 1 and source[0].shape == (*size, 3) and not source.still


def test_a_phone_video_stands_upright(tmp_path, monkeypatch):
    turned = film(tmp_path / "a.mp4", frames=3)
    flat = frames_of(turned)[1]
    data = turned.read_bytes()
    # The track header's matrix, 16.16 fixed point: a quarter turn clockwise, as phones write it.
    unit = b"\x00\x01\x00\x00"
    zero, minus, one = b"\0" * 4, b"\xff\xff\x00\x00", b"\x40\x00\x00\x00"
    straight = unit + zero + zero + zero + unit + zero + zero + zero + one
    at = data.index(straight, data.index(b"tkhd"))
    clockwise = zero + unit + zero + minus + zero + zero + zero + zero + one
    turned.write_bytes(data[:at] + clockwise + data[at + len(straight) :])
    source = frames_of(turned)
    assert source.size == (64, 48)
    assert np.array_equal(source[1], np.rot90(flat, -1))


def test_an_animated_gif_is_a_video(tmp_path):
    from PIL import Image

    steps = [Image.fromarray(np.full((20, 31, 3), value, np.uint8)) for value in (10, 100, 200)]
    steps[0].save(tmp_path / "a.gif", save_all=True, append_images=steps[1:])
    assert [int(frame[0, 0, 0]) for frame in frames_of(tmp_path / "a.gif")] == [10, 100, 200]


def test_a_gif_whose_frames_are_skipped_is_refused(tmp_path):
    """FFmpeg takes frames without a block of control for one."""
    from PIL import Image

    steps = [Image.fromarray(np.full((20, 30), 20 * n, np.uint8)) for n in range(12)]
    steps[0].save(tmp_path / "a.gif", save_all=True, append_images=steps[1:], optimize=False)
    with pytest.raises(DataError, match=r"of \S+a.gif 1 of 12 frames can be read; save it with a duration"):
        frames_of(tmp_path / "a.gif")
    steps[0].save(tmp_path / "a.gif", save_all=True, append_images=steps[1:], duration=100, disposal=2)
    assert len(frames_of(tmp_path / "a.gif")) == 12
