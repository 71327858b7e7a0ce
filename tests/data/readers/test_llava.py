"""Conversations without masks: LLaVA-665k over pictures, Chat-UniVi over videos."""

from __future__ import annotations

import pickle
from fractions import Fraction

import av
import numpy as np
import pytest

from salmacli.data.readers import talk_files
from salmacli.data.readers.talk_files import plain
from salmacli.data.records import Round
from salmacli.data.sets import open_set
from salmacli.errors import DataError

FILE = "LLaVA-Instruct-150K/llava_v1_5_mix665k.json"
CAT = {
    "id": "000000033471",
    "image": "coco/train2017/000000033471.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Is it asleep?"},
        {"from": "gpt", "value": "No."},
    ],
}
HTML = {
    "id": "wgByO4Y_0",
    "model": "",
    "conversations": [
        {"from": "gpt", "value": "Hello!"},
        {"from": "human", "value": "How do I write  a paragraph?\n"},
        {"from": "gpt", "value": "Like so:\n  <p>text</p> and [SEG] <|im_end|>"},
        {"from": "human", "value": "Thanks"},
    ],
}


@pytest.fixture
def llava(put, tmp_path):
    def llava(*records):
        put(FILE, list(records))
        put("llava_images/coco/train2017/000000033471.jpg", (24, 32))
        return open_set("llava", tmp_path, "train")

    return llava


def test_a_picture_and_its_rounds(llava):
    talks = llava(CAT, HTML)
    talk = talks.talk(0)
    assert talk.rounds == (Round("What is it?", "A cat."), Round("Is it asleep?", "No."))
    assert (talk.targets, talk.regions) == ((), ())
    frames = talks.frames(0)
    assert (frames.still, frames.size, len(frames), frames[0].shape) == (True, (24, 32), 1, (24, 32, 3))
    assert len(talks) == 2 and talks.shown(0) and 20 < talks.length(0) < 60


def test_a_talk_about_nothing_and_what_it_must_not_say(llava):
    talks = llava(CAT, HTML)
    (one,) = talks.talk(1).rounds  # neither the greeting nor the question without an answer
    assert one.question == "How do I write  a paragraph?"
    assert one.answer == "Like so:\n  < p>text< /p> and [ SEG] < |im_end|>"
    assert talks.frames(1) is None and not talks.shown(1)
    assert list(talks.texts())[:2] == ["What is it?", "A cat."]


def test_only_special_tokens_are_broken():
    for token in ("<vp>", "</vp>", "<image>", "<IMG_CONTEXT>", "<img>", "</img>", "<|endoftext|>", "[SEG]", "</s>"):
        assert token not in plain(f"x{token}y")
        assert plain(f"x{token}y").replace(" ", "") == f"x{token}y"
    for text in ("a < b and b > c", "<pre>", "[SEGMENT]", "<div>", "a<-b", "SEG"):
        assert plain(text).replace("[ ", "[") == text


def test_records_are_read_when_asked_for_and_travel_without_them(llava, monkeypatch):
    talks = llava(*[{**CAT, "id": str(n)} for n in range(50)])
    reads = []
    read = talk_files.read_part
    monkeypatch.setattr(talk_files, "read_part", lambda *place: reads.append(place) or read(*place))
    talks.talk(7), talks.frames(7), talks.talk(7)
    assert len(reads) == 1
    copy = pickle.dumps(talks)
    assert len(copy) < 6000 and b"asleep" not in copy
    assert pickle.loads(copy).talk(49) == talks.talk(49)


def said(*turns):
    return {"id": "x", "conversations": [dict(zip(("from", "value"), turn, strict=True)) for turn in turns]}


BROKEN = {
    "not an object": (["x"], "record 1: an object is needed"),
    "no conversations": ({"id": "x"}, "record 1, key conversations: a list is needed"),
    "nothing said": (said(), "nothing is asked and answered"),
    "only a question": (said(("human", "hello")), "nothing is asked and answered"),
    "a stranger": (said(("system", "hello")), "record 1, message 0, key from: 'system' is neither"),
    "twice in a row": (said(("human", "a"), ("human", "b"), ("gpt", "c")), "message 1: human speaks twice"),
    "empty question": (said(("human", "<image>\n "), ("gpt", "c")), "record 1, message 0: the text is empty"),
    "empty answer": (said(("human", "a"), ("gpt", " ")), "message 1: the text is empty"),
    "no text": (said(("human", "a"), ("gpt", None)), "message 1: the text is empty"),
    "message is a text": ({"conversations": ["hello"]}, "message 0: an object is needed"),
}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_a_broken_record_says_so_when_it_is_visited(llava, fault):
    record, message = BROKEN[fault]
    talks = llava(CAT, record, HTML)
    assert len(talks) == 3
    with pytest.raises(DataError, match=message) as caught:
        talks.talk(1)
    assert "llava_v1_5_mix665k.json" in str(caught.value)
    assert talks.talk(2).rounds
    assert len(list(talks.texts())) == 6


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "coco/../../x.jpg", "coco//x.jpg", "C:\\x.jpg", 7, ""]
)
def test_names_that_lead_outside(llava, name):
    with pytest.raises(DataError, match=r"record 0, key image: .*(plain name|name of a file)"):
        llava({**CAT, "image": name}).frames(0)


def test_a_picture_that_is_missing(llava):
    frames = llava({**CAT, "image": "coco/train2017/000000000001.jpg"}).frames(0)
    with pytest.raises(DataError, match=r"000000000001\.jpg does not exist"):
        frames[0]


def test_folders_and_files_that_are_missing(put, tmp_path):
    with pytest.raises(DataError, match="llava_images"):
        open_set("llava", tmp_path, "train")
    put("llava_images/x.jpg", (8, 8))
    with pytest.raises(DataError, match="llava_v1_5_mix665k"):
        open_set("llava", tmp_path, "train")
    put(FILE, [])
    with pytest.raises(DataError, match="holds no record"):
        open_set("llava", tmp_path, "train")
    with pytest.raises(DataError, match="no split 'val'"):
        open_set("llava", tmp_path, "val")
    with pytest.raises(DataError, match="does not exist"):
        open_set("llava", tmp_path / "nowhere", "train")


@pytest.fixture
def univi(put, tmp_path):
    def univi(name, file, frames=12):
        video = {
            "id": 1,
            "video": name,
            "conversations": [
                {"from": "human", "value": "What happens?\n<video>"},
                {"from": "gpt", "value": "They run."},
            ],
        }
        put("video_chat.json", [video])
        path = tmp_path / "Activity_Videos" / file
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 20 * number, dtype=np.uint8), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return open_set("chatunivi", tmp_path, "train")

    return univi


@pytest.mark.parametrize(("name", "file"), [("v_1.mp4", "v_1.mp4"), ("v_2.mkv", "v_2.mkv"), ("v_3.mkv", "v_3.mp4")])
def test_a_video_and_its_rounds(univi, name, file):
    talks = univi(name, file)
    assert talks.talk(0).rounds == (Round("What happens?", "They run."),)
    frames = talks.frames(0)
    assert (talks.still, frames.still, len(frames), frames.size) == (False, False, 12, (32, 48))
    assert [round(float(frame.mean()) / 20) for frame in frames.read([1, 4, 11])] == [1, 4, 11]


def test_a_video_that_is_missing_or_none(univi, tmp_path):
    with pytest.raises(DataError, match=r"v_9.mp4 does not exist .*record 0, key video"):
        univi("v_9.mp4", "v_1.mp4").frames(0)
    talks = univi("v_1.mp4", "v_1.mp4")
    (tmp_path / "Activity_Videos" / "v_1.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"v_1\.mp4 cannot be read"):
        talks.frames(0)
