"""Sets that are made here: a benchmark whose masks say which frame and which object they are of, and talks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salmacli.data import rle
from salmacli.data.benchmarks import Benchmark
from salmacli.data.frames import FrameSource, arrays
from salmacli.data.records import Expression, Round, Talk, Video
from salmacli.data.talks import TalkSet

TEXTS = ("the red one", "the blue one", "which one is green?")


class Rows(Benchmark):
    """Object n is one pixel per frame: row n, column of the frame; frame f has the colour 10·f."""

    def __init__(
        self, root: Path, videos: int = 3, frames: int = 6, texts: tuple[str, ...] = TEXTS, name: str = "rows"
    ) -> None:
        expressions = tuple(Expression(str(n), text, (str(n),)) for n, text in enumerate(texts))
        names = tuple(f"{n:05d}" for n in range(frames))
        records = [Video(f"v{n}", names, expressions) for n in range(videos)]
        super().__init__(name, root, "train", records, root)
        self.height, self.width = 8, 10
        for video in self.videos:
            for n, frame in enumerate(names):
                path = self.frame_path(video, frame)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((self.height, self.width, 3), 10 * n, np.uint8)).save(path)

    def frame_path(self, video: Video, frame: str) -> Path:
        return self.root / video.name / f"{frame}.png"

    def objects(self, video: Video, expression: Expression) -> list[list[rle.RLE | None]]:
        tracks = []
        for key in expression.targets:
            masks = np.zeros((len(video.frames), self.height, self.width), bool)
            masks[range(len(masks)), int(key), range(len(masks))] = True
            tracks.append([rle.encode(mask) for mask in masks])
        return tracks


class Talks(TalkSet):
    """Talks in memory; a mask's key is the row of the picture that it fills."""

    def __init__(self, talks: list[Talk], frames: int | None = 1, still: bool = True, name: str = "talks") -> None:
        super().__init__(name, Path("nowhere"))
        self.talks, self.count, self.still = talks, frames, still

    def __len__(self) -> int:
        return len(self.talks)

    def length(self, n: int) -> int:
        return sum(len(one.question) + len(one.answer) for one in self.talks[n].rounds)

    def shown(self, n: int) -> bool:
        return self.count is not None

    def talk(self, n: int) -> Talk:
        return self.talks[n]

    def frames(self, n: int) -> FrameSource | None:
        if self.count is None:
            return None
        return arrays([np.full((8, 10, 3), 10 * n, np.uint8) for n in range(self.count)], self.still)

    def mask(self, n: int, key: str, size: tuple[int, int]) -> rle.RLE:
        mask = np.zeros(size, bool)
        mask[int(key)] = True
        return rle.encode(mask)


GCG = Talk(
    "gcg/0",
    (Round("Describe it.", "<p> A dog </p> [SEG] beside <p> two cats </p> [SEG].", ("What is there?",)),),
    targets=("1", "3"),
)
CHAT = Talk("chat/0", (Round("What is it?", "A film."), Round("Of what?", "Of a dog."), Round("Sure?", "Yes.")))
REGION = Talk("region/0", (Round("There is region1<vp></vp>.\nWhat is it?", "A dog."),), regions=("2",))


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(tmp_path)
