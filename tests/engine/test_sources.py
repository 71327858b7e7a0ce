"""The mix as a run opens it: every set in its own layout below one folder, read, batched and trained on for a step."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from salmacli.config.loading import load_config
from salmacli.config.schema import RunConfig
from salmacli.data import rle
from salmacli.data.training.clips import BadClip
from salmacli.data.training.mix import TrainingMix
from salmacli.data.training.order import VisitOrder
from salmacli.engine.progress import Silent
from salmacli.engine.sources import describe, open_mix, open_source
from salmacli.engine.training.loader import collator_of
from salmacli.errors import DataError
from salmacli.models.losses import Counts, total_loss
from salmacli.models.salma import Salma

SMALL = ["model.cma.enabled=true", "model.clip_frames=2", "model.sam2.image_size=64", "data.expressions=2"]
SMALL += ["data.decoded_frames=2", "losses.points=64", "model.tiles=12"]
SIZE = (24, 32)
SYNTHETIC = {"mevis": "video_datas/mevis", "revos": "video_datas/revos", "refytvos": "video_datas/rvos", "own": "own"}


class Listener(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def put(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, tuple):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*content, 3), np.uint8)).save(path)
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def film(path: Path, frames: int) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(frames):
            picture = np.full((*SIZE, 3), 10 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def mask(row: int) -> dict:
    drawn = np.zeros(SIZE, bool)
    drawn[row : row + 8, 4:20] = True
    return rle.encode(drawn)


def said(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


@pytest.fixture(scope="module")
def root(small_synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all data, with two samples of each set that has no synthetic stand-in."""
    root = tmp_path_factory.mktemp("data")
    for name, place in SYNTHETIC.items():
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).symlink_to(small_synthetic / ("rvos" if name == "refytvos" else name))
    for part in ("ref_seg", "coco2014"):
        (root / part).symlink_to(small_synthetic / "refcoco" / part)
    put(root / "llava_data/llava_images/coco/a.jpg", SIZE)
    talk = said("<image>\nWhat is it?", "A cat.", "Is it asleep?", "No.")
    nothing = {"id": "1", "conversations": said("Hello?", "Hello!")}
    put(
        root / "llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json",
        [{"id": "0", "image": "coco/a.jpg", "conversations": talk}, nothing],
    )
    film(root / "video_datas/chat_univi/Activity_Videos/v.mp4", 9)
    video = {"id": "v", "video": "v.mp4", "conversations": said("<video>\nWhat happens?", "Nothing.")}
    put(root / "video_datas/chat_univi/video_chat.json", [video, video])
    put(root / "osprey-724k/coco/train2014/a.jpg", SIZE)
    region = {
        "file_name": "a.jpg",
        "height": 24,
        "width": 32,
        "annotation": [{"segmentation": mask(4)}],
        "conversations": said("What is <region1>?", "A cup."),
    }
    put(root / "osprey-724k/Osprey-724K/osprey_conversation.json", [region, region])
    phrases = {
        "a man": {"token_positives": [0, 5], "rle_masks": [mask(2)]},
        "a dog": {"token_positives": [12, 17], "rle_masks": [mask(12)]},
    }
    caption = {"file_name": "a.jpg", "height": 24, "width": 32, "image_id": "a", "caption": "A man holds a dog."}
    put(root / "glamm_data/images/grandf/train/a.jpg", SIZE)
    put(root / "glamm_data/annotations/GranDf_HA_GCG_train.json", [{**caption, "groundings": phrases}] * 2)
    place = "sav_train/sav_000/sav_000002"
    film(root / f"video_datas/sam_v_full/{place}.mp4", 14)
    put(root / f"video_datas/sam_v_full/{place}_manual.json", {"masklet": [[mask(4 * t)] for t in range(4)]})
    objects = {"0": {"formated": "A thing is there. It moves down.", "short_caps": ["A thing"]}}
    paths = {"video_path": f"sav_000/{place}.mp4", "anno_path": f"sav_000/{place}_manual.json"}
    put(root / "video_datas/Ref-SAV.json", {"sav_000002": {**paths, "objects": objects}})
    return root


def config(root: Path | None, *members: str, more: tuple[str, ...] = ()) -> RunConfig:
    train = ", ".join(f"{{set: {one}}}" if "{" not in one else one for one in members)
    place = [f"data.root={root}"] if root else []
    return load_config("tiny", [*SMALL, *place, f"data.train=[{train}]", *more])


def opened(settings: RunConfig) -> TrainingMix:
    return open_mix(settings.data, settings.model, settings.seed, Silent())


@pytest.fixture(scope="module")
def model() -> Salma:
    torch.manual_seed(0)
    settings = config(None, "mevis")
    return Salma.build(settings.model, ["the red circle", "What is it? A cat and a dog."])


KINDS = {  # set: frames or tiles seen, objects, frames to segment
    "mevis": (2, 2, 2),
    "revos": (2, 2, 2),
    "refytvos": (2, 2, 2),
    "refcoco": (13, 2, 1),
    "own": (13, 2, 1),
    "refsav": (2, 1, 2),
    "gcg-grandf": (13, 2, 1),
    "llava": (13, 0, 0),
    "chatunivi": (2, 0, 0),
    "osprey": (13, 0, 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_set_is_read_batched_and_trained_on(name, root, model):
    settings = config(root, name)
    mix = opened(settings)
    clip = mix[0, 0]
    assert not isinstance(clip, BadClip), clip
    assert clip.name.startswith(f"{name}/")
    batch = collator_of(model, settings.data.max_tokens).batch([clip])
    pictures, objects, frames = KINDS[name]
    assert (len(batch.mllm_pixels), len(batch.seg_rows), len(batch.sam_pixels)) == (pictures, objects, frames)
    assert bool(batch.targets.flatten(1).any(1).all()) or name != "gcg-grandf"
    placeholders = int((batch.ids == model.mllm.image_id).sum())
    assert len(batch.seen) == placeholders >= pictures * model.mllm.tokens_per_frame
    assert (placeholders > pictures * model.mllm.tokens_per_frame) == (name == "osprey")
    model.zero_grad()
    counts = Counts(masks=max(len(batch.targets), 1), answers=int((batch.labels >= 0).sum()), frames=max(frames, 1))
    loss, parts = total_loss(model(batch), batch, settings.losses, counts)
    assert torch.isfinite(loss) and float(parts["lm"]) > 0 and (float(parts["bce"]) > 0) == bool(objects)
    loss.backward()


def test_a_whole_mix_goes_through_its_epoch_exactly(root, model):
    settings = config(root, "{set: llava, repeats: 2}", "{set: gcg-grandf, repeats: 3}", "osprey", "refsav", "mevis")
    mix = opened(settings)
    collator, names = collator_of(model, settings.data.max_tokens), Counter()
    assert len(mix) == 2 * 2 + 2 * 3 + 2 + 1 + len(mix.sources[-1].set.videos)
    order = VisitOrder(mix, 4, rank=0, ranks=1, first_pass=0)
    for keys in islice(order, -(-len(mix) // 4)):
        batch, bad = collator([mix[key] for key in keys if key[0] == 0])
        names.update(batch.names)
        assert not bad and batch.left_out == 0
    assert sum(names.values()) == len(mix)
    assert {name: names[name] for name in names if not name.startswith("mevis")} == {
        "llava/0": 2,
        "llava/1": 2,
        "gcg-grandf/0": 3,
        "gcg-grandf/1": 3,
        "osprey/0": 1,
        "osprey/1": 1,
        "refsav/sav_000002": 1,
    }


def test_what_was_read_is_described_and_a_change_is_seen(root, tmp_path):
    settings = config(root, "llava", "mevis")
    found = describe(opened(settings).sources)
    assert [(one["set"], one["synthetic"]) for one in found] == [("llava", False), ("mevis", True)]
    assert found[0]["talks"] == 2 and found[1]["videos"] > 0 and found[1]["expressions"] > 0
    assert found == describe(opened(settings).sources)
    shutil.copytree(root / "llava_data", tmp_path / "llava_data")
    file = tmp_path / "llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json"
    file.write_text(file.read_text().replace("A cat.", "A dog."))
    assert describe(opened(config(tmp_path, "llava")).sources)[0]["sha256"] != found[0]["sha256"]


def test_a_broken_record_does_not_end_the_start(root, tmp_path):
    """It is dropped when it is drawn."""
    shutil.copytree(root / "llava_data", tmp_path / "llava_data")
    file = tmp_path / "llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json"
    digests = []
    for broken in ("Hello?", "", " "):
        content = json.loads(file.read_text())
        content[1]["conversations"][0]["value"] = broken
        file.write_text(json.dumps(content))
        (found,) = describe(opened(config(tmp_path, "llava")).sources)
        assert found["talks"] == 2
        digests.append(found["sha256"])
    assert digests[0] != digests[1]


def test_a_member_s_own_root_goes_before_the_folder_of_all(root, small_synthetic, tmp_path):
    mix = opened(config(tmp_path, f"{{set: mevis, root: {small_synthetic / 'mevis'}}}"))
    assert mix.sets()[0].root == small_synthetic / "mevis"
    with pytest.raises(DataError, match=f"{tmp_path}/video_datas/revos does not exist"):
        opened(config(tmp_path, "revos"))


def test_all_sets_that_are_missing_are_told_at_once(small_synthetic, tmp_path):
    there = f"{{set: mevis, root: {small_synthetic / 'mevis'}}}"
    with pytest.raises(DataError) as caught:
        opened(config(tmp_path, "revos", there, "llava"))
    told = str(caught.value)
    assert told.startswith("2 of 3 sets cannot be trained on: ") and "mevis" not in told
    assert f"{tmp_path}/video_datas/revos" in told and f"{tmp_path}/llava_data" in told
    assert told.endswith("; salma doctor train with the same options lists them") and told.count("; ") == 2


def test_without_any_folder_the_synthetic_benchmark_stands_in_where_it_can(small_synthetic, monkeypatch):
    monkeypatch.setenv("SALMA_SYNTHETIC", str(small_synthetic))
    assert opened(config(None, "mevis")).sets()[0].synthetic
    assert open_source("mevis", None, None, Silent()).synthetic
    with pytest.raises(DataError, match=r"llava: no folder is named; set data\.root"):
        opened(config(None, "llava"))


@pytest.mark.parametrize(("broken", "fraction", "fails"), [(1, 0.0, False), (2, 0.5, False), (2, 0.0, True)])
def test_what_is_broken_in_a_set_s_file_is_left_out_up_to_a_limit(small_synthetic, tmp_path, broken, fraction, fails):
    shutil.copytree(small_synthetic / "mevis" / "train", tmp_path / "mevis" / "train")
    file = tmp_path / "mevis" / "train" / "meta_expressions.json"
    content = json.loads(file.read_text())
    for name in sorted(content["videos"])[:broken]:
        content["videos"][name]["frames"] = []
    file.write_text(json.dumps(content))
    member = f"{{set: mevis, root: {tmp_path / 'mevis'}}}"
    settings = config(None, member, more=(f"data.max_bad_fraction={fraction}",))
    listener = Listener()
    if fails:
        with pytest.raises(
            DataError, match=r"mevis in .*mevis: 2 broken entries, the first: .*salma data verify mevis"
        ):
            open_mix(settings.data, settings.model, 0, listener)
    else:
        mix = open_mix(settings.data, settings.model, 0, listener)
        told = ": 1 broken entry, the first: " if broken == 1 else ": 2 broken entries, the first: "
        assert len(mix) == len(content["videos"]) - broken and told in listener.said[0]
        assert listener.said[0].startswith(f"left out of mevis in {tmp_path / 'mevis'}: ")
        assert describe(mix.sources)[0]["left_out"] == broken
