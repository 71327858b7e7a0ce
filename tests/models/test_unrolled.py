"""Training through the memory: what prediction does, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from salmacli.config.loading import load_config
from salmacli.config.schema import PredictConfig
from salmacli.data.frames import arrays
from salmacli.engine.prediction.batches import BatchSize
from salmacli.engine.prediction.features import VideoFeatures
from salmacli.engine.prediction.sights import to_sam2
from salmacli.engine.prediction.tracking import Tracker
from salmacli.engine.prediction.windows import Window
from salmacli.models import unrolled as unrolled_module
from salmacli.models.grounding import Masks
from salmacli.models.memory import MemoryBank, coloured
from salmacli.models.propagation import AsSam2, binarised
from salmacli.models.salma import Language, Salma
from salmacli.models.unrolled import Unrolling, unrolled

OBJECTS, LONGEST = 2, 8
KINDS = [("2", False), ("2", True), ("2.1", True)]


def model_of(version: str, object_scores: bool) -> Salma:
    """A small model whose every parameter matters."""
    torch.manual_seed(0)
    settings = [
        "model.cma.enabled=true",
        "model.sam2.image_size=64",
        f'model.sam2.version="{version}"',
        f"model.sam2.object_scores={str(object_scores).lower()}",
    ]
    model = Salma.build(load_config("tiny", settings).model, ["the red circle"]).eval()
    for parameter in model.grounding.parameters():
        if not parameter.abs().sum():
            nn.init.normal_(parameter, std=0.3)
    model.cma.gamma.data.fill_(0.5)
    return model


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{'scores' if kind[1] else 'plain'}")
def model(request) -> Salma:
    return model_of(*request.param)


@pytest.fixture(scope="module")
def one() -> Salma:
    return model_of("2.1", True)


def pictures(clip: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(clip)
    return list(rng.integers(0, 255, (count, 40, 60, 3), dtype=np.uint8))


def said(model: Salma, clip: int) -> Language:
    generator = torch.Generator().manual_seed(clip)
    width = model.config.sam2.width
    seg, words = torch.randn(OBJECTS, width, generator=generator), torch.randn(OBJECTS, 3, width, generator=generator)
    return Language(seg, words, torch.ones(OBJECTS, 3, dtype=torch.bool))


class Clips:
    """Clips of so many frames each, with two objects, as a batch holds them; `seg` is where language comes in."""

    def __init__(self, model: Salma, *lengths: int) -> None:
        self.model, frame_of, object_of, frames = model, [], [], 0
        for clip, length in enumerate(lengths):
            for one in range(OBJECTS):
                frame_of += range(frames, frames + length)
                object_of += [clip * OBJECTS + one] * length
            frames += length
        self.frame_of, self.object_of = torch.tensor(frame_of), torch.tensor(object_of)
        pixels = [to_sam2(model, "consistent", pictures(clip, length)) for clip, length in enumerate(lengths)]
        self.pixels = torch.cat(pixels)
        parts = [said(model, clip) for clip in range(len(lengths))]
        self.seg = torch.cat([part.seg for part in parts]).requires_grad_()
        self.language = Language(self.seg, *(torch.cat([getattr(p, n) for p in parts]) for n in ("words", "valid")))
        self.asked: list[Tensor] = []
        self.seeds = torch.arange(len(self.frame_of))
        self.targets = torch.rand(len(self.frame_of), 64, 64, generator=torch.Generator().manual_seed(0)) > 0.5

    def masks(self, how: Unrolling) -> Masks:
        """As `Salma.forward` makes them."""
        features = self.model.grounding.encode(self.pixels)
        sights = self.model.grounding.decodable(features)
        prior = self.model.prior(sights)

        def decode(rows: Tensor) -> Masks:
            self.asked.append(rows)
            frames, objects = self.frame_of[rows], self.object_of[rows]
            return self.model.decode(sights.at(frames), self.language.at(objects), prior[frames])

        return unrolled(self.model.grounding, features, self, decode, how)


def predicted(model: Salma, clip: int, length: int, keys: Sequence[int]) -> Tensor:
    """(O, D, S/4, S/4) logits of mode `consistent`."""
    settings = PredictConfig(mode="consistent", key_frames=len(keys), choice="first")
    sizes = [BatchSize(8, "things", print) for _ in range(3)]
    with torch.inference_mode():
        features = VideoFeatures(model, "consistent", arrays(pictures(clip, length)), sizes[0], 1)
        features.hold(list(keys))
        tracker = Tracker(model, settings, features, said(model, clip), masks=sizes[1], memories=sizes[2])
        frames = {number: logits for number, _, logits in tracker.frames(Window(0, length), keys, ())}
    return torch.stack([frames[number] for number in range(length)], dim=1)


@pytest.mark.parametrize("prompted", [1, 3])
def test_the_way_forward_is_that_of_prediction(model, prompted):
    """Two clips of different length at once; the longer one outlasts the memory (6 frames)."""
    lengths = (LONGEST, 4)
    keys = range(prompted)
    theirs = [predicted(model, clip, length, keys).flatten(0, 1) for clip, length in enumerate(lengths)]
    clips = Clips(model, *lengths)
    with torch.no_grad():
        masks = clips.masks(Unrolling(prompted))
    first = torch.cat([torch.arange(length) < prompted for length in lengths for _ in range(OBJECTS)])
    ours = torch.where(first[:, None, None], masks.logits, AsSam2(model.grounding).seen(masks))
    assert torch.allclose(ours, torch.cat(theirs), atol=1e-5)
    assert not torch.allclose(ours[~first], Clips(model, *lengths).masks(Unrolling(LONGEST)).logits[~first], atol=1e-2)


def test_gradients_go_all_the_way_back(one):
    """From the frames that follow to what made the memory, and through it to what was said of the object."""
    one.zero_grad()
    clips = Clips(one, 4)
    masks = clips.masks(Unrolling(1))
    last = torch.arange(len(masks.logits)) % 4 == 3
    masks.logits[last].square().mean().backward()
    grounding = one.grounding
    parts = {
        "memory attention": grounding.memory_attention.parameters(),
        "memory encoder": grounding.memory_encoder.parameters(),
        "pointers": grounding.obj_ptr_proj.parameters(),
        "their times": grounding.obj_ptr_tpos_proj.parameters(),
        "places in time": [grounding.maskmem_tpos_enc],
        "given masks": [
            *grounding.mask_downsample.parameters(),
            *grounding.sam_prompt_encoder.mask_downscaling.parameters(),
        ],
        "language": [clips.seg],
    }
    for name, parameters in parts.items():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        assert gradients and any(bool(g.count_nonzero()) and bool(g.isfinite().all()) for g in gradients), name


def test_a_given_mask_is_a_step_with_a_slope():
    logits = torch.tensor([-30.0, -1.0, 0.0, 1e-6, 2.0], requires_grad=True)
    given = binarised(logits)
    assert given.tolist() == [0, 0, 0, 1, 1] and not binarised(logits.detach()).requires_grad
    given.sum().backward()
    assert torch.allclose(logits.grad, logits.detach().sigmoid() * (1 - logits.detach().sigmoid()))


def test_checkpointing_changes_nothing(one):
    """Not even with dropout."""
    results = []
    one.train()
    try:
        for checkpoint in (False, True):
            torch.manual_seed(5)
            one.zero_grad()
            clips = Clips(one, 4, 3)
            masks = clips.masks(Unrolling(2, checkpoint=checkpoint))
            (masks.logits.square().mean() + masks.presence.sum() + masks.iou.sum()).backward()
            results.append(
                [masks.logits, clips.seg.grad, *(p.grad for p in one.grounding.memory_attention.parameters())]
            )
    finally:
        one.eval()
    assert all(torch.equal(kept, again) for kept, again in zip(*results, strict=True))


def test_only_the_first_frames_are_decoded_with_language_and_a_short_clip_is_all_language(one):
    clips = Clips(one, 4, 1, 2)
    with torch.no_grad():
        masks = clips.masks(Unrolling(2))
        by_language = Clips(one, 4, 1, 2).masks(Unrolling(LONGEST))
        alone = Clips(one, 4).masks(Unrolling(2))
    asked = torch.cat(clips.asked).sort().values
    assert clips.object_of[asked].bincount().tolist() == [2, 2, 1, 1, 2, 2]
    assert clips.frame_of[asked].unique().tolist() == [0, 1, 4, 5, 6]
    for ours, theirs in zip(masks.parts(), by_language.parts(), strict=True):
        assert torch.allclose(ours[asked], theirs[asked], atol=1e-5)
    for ours, theirs in zip(masks.parts(), alone.parts(), strict=True):
        assert torch.allclose(ours[: len(theirs)], theirs, atol=1e-5), "other clips change nothing"


def test_an_absent_object_is_remembered_as_such_and_still_taught(one):
    """Its masks keep their gradient; what is remembered is SAM 2's own pointer and place of absence."""
    one.zero_grad()
    bias = one.grounding.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    usual = bias.detach().clone()
    bias.data.fill_(-100.0)
    try:
        masks = Clips(one, 4).masks(Unrolling(1))
    finally:
        bias.data.copy_(usual)
    assert bool((masks.presence < 0).all()) and bool((masks.logits.abs() < 500).all())
    masks.logits[3].square().mean().backward()
    for parameter in (one.grounding.no_obj_ptr, one.grounding.no_obj_embed_spatial):
        assert bool(parameter.grad.count_nonzero())
    masks = Clips(one, 4).masks(Unrolling(1))
    one.zero_grad()
    masks.presence[3].sum().backward()
    assert bool(one.grounding.sam_mask_decoder.pred_obj_score_head.layers[-1].weight.grad.count_nonzero())


def test_true_masks_may_enter_the_memory_and_are_never_told(one):
    """Which do follows from the seeds; language is still judged by its own masks, no longer by what follows."""
    clips = Clips(one, 4)
    masks = clips.masks(Unrolling(1, true_prompts=1.0))
    usual = Clips(one, 4).masks(Unrolling(1))
    first = torch.arange(len(masks.logits)) % 4 == 0
    assert torch.equal(masks.logits[first], usual.logits[first])
    assert not torch.allclose(masks.logits[~first], usual.logits[~first], atol=1e-4)
    masks.logits[~first].sum().backward()
    assert clips.seg.grad is None or not clips.seg.grad.any()
    clips.seeds, some = torch.arange(2000), torch.arange(1000)
    clips.targets, clips.frame_of = torch.ones(1, 64, 64, dtype=torch.bool).expand(1000, -1, -1), torch.zeros(1000)
    told = Masks(torch.full((1000, 1, 1), -5.0), torch.zeros(1000), torch.zeros(1000, 1), torch.zeros(1000, 1))
    walk = unrolled_module.Clips.__new__(unrolled_module.Clips)
    walk.how, walk.batch = Unrolling(1, true_prompts=0.3), clips
    true = (walk._corrected(some, told).logits > 0).flatten()
    assert 250 < true.sum() < 350 and torch.equal(true, (walk._corrected(some, told).logits > 0).flatten())


def test_a_fresh_memory_says_where_an_object_was():
    """And not faintly: the decoder has to learn to read it."""
    torch.manual_seed(0)
    grounding = Salma.build(load_config("tiny").model, ["the red circle"]).eval().grounding
    way, masks = AsSam2(grounding), torch.full((2, 32, 32), -10.0)
    masks[0, :16, :16] = masks[1, 16:, 16:] = 10.0
    with torch.no_grad():
        features = grounding.encode(torch.randn(1, 3, 128, 128))
        sight = way.sights(features)
        given = way.remember(sight, Masks(masks, torch.ones(2), torch.zeros(2, 96), torch.ones(2, 1)))
        seen = coloured(grounding, sight.image, features.position, MemoryBank(grounding, {0: given}, 2).recall(1))
    apart = (seen[0] - seen[1]).norm(dim=0)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[:4, :4] = inside[4:, 4:] = True
    assert apart[inside].mean() > 0.1 * seen.norm(dim=1).mean(), "it is heard"
    assert apart[inside].mean() > 2 * apart[~inside].mean(), "and it is there"


def test_a_prediction_in_between_does_not_disturb():
    """Validation runs in inference mode, whose tensors must not turn up in a training step."""
    fresh = model_of("2", False)
    predicted(fresh, 0, 3, [0])
    Clips(fresh, 3).masks(Unrolling(1)).logits.sum().backward()
