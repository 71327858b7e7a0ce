"""Small cases with names, made here, whose official scores lie in cases.json."""

from __future__ import annotations

import numpy as np
from fuzz import Draw, label_video
from numpy.typing import NDArray

Labels = NDArray[np.uint8]


def masks() -> dict[str, NDArray[np.bool_]]:
    """Masks of one size; each is scored against each."""
    empty = np.zeros((12, 20), dtype=np.bool_)
    box, corner = empty.copy(), empty.copy()
    box[3:8, 4:11] = True
    corner[-1, -1] = True  # no boundary pixel of its own, but three of its neighbours'
    return {"empty": empty, "full": ~empty, "box": box, "corner": corner}


def videos() -> dict[str, tuple[Labels, Labels]]:
    """Label videos by name: (truth, prediction), each (frames, 30, 50)."""
    truth = label_video(1, 12, 3)
    prediction = _disturbed(truth, 2)
    swapped = np.array([0, 2, 3, 1], dtype=np.uint8)[prediction]
    void = label_video(3, 12, 2, void=True)
    without_void = np.where(void == 255, 0, void).astype(np.uint8)
    predicted_void = prediction.copy()
    predicted_void[5, :2] = 255
    late = truth.copy()
    late[0][late[0] == 3] = 0
    long = {f"{n} frames": label_video(4, n, 2) for n in (256, 257, 300)}
    return {
        "as they are": (truth, prediction),
        "identities swapped": (truth, swapped),
        "void in the truth": (void, _disturbed(without_void, 5)),
        "void in the prediction": (truth, predicted_void),
        "more objects than true": (label_video(6, 12, 2), label_video(7, 12, 5)),
        "fewer objects than true": (truth, np.where(prediction == 2, 2, 0).astype(np.uint8)),
        "nothing predicted": (truth, np.zeros_like(truth)),
        "object not in the first frame": (late, np.where(prediction == 3, 0, prediction).astype(np.uint8)),
        **{name: (video, _disturbed(video, 8)) for name, video in long.items()},
    }


def series() -> dict[str, NDArray[np.float64]]:
    """Scores per frame for mean, recall and decay, by their number of frames."""
    found = {}
    for frames in (1, 2, 3, 4, 5, 6, 7, 10, 34, 48, 67, 82, 104, 255, 256, 257, 300, 600, 1100):
        draw = Draw(frames, 2)
        found[str(frames)] = np.array([draw.below(1 << 53) for _ in range(frames)]) / float(1 << 53)
    return found


def _disturbed(video: Labels, number: int) -> Labels:
    """Moved a little, and some pixels lost."""
    draw = Draw(number, 3)
    out = np.zeros_like(video)
    for was, now in zip(video, out, strict=True):
        down, right = draw.between(0, 3), draw.between(0, 3)
        now[down:, right:] = was[: was.shape[0] - down, : was.shape[1] - right]
        now[draw.noise(*was.shape, 6)] = 0
    return out
