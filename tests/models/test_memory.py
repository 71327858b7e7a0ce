"""Our memory against the sam2 package's own tracking, frame by frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmacli.config.loading import load_config
from salmacli.models.grounding import Decodable, FrameFeatures, Grounding, Masks, build_grounding
from salmacli.models.memory import Memory, MemoryBank, coloured
from salmacli.models.propagation import AsSa2va, AsSam2

KINDS = [("2", True), ("2.1", True), ("2", False)]
OBJECTS = 3


def grounding_of(version: str, object_scores: bool, two_decoders: bool = False) -> Grounding:
    """A SAM 2 whose every parameter matters; half of the objects seem absent now and then."""
    torch.manual_seed(0)
    settings = [
        f'model.sam2.version="{version}"',
        f"model.sam2.object_scores={str(object_scores).lower()}",
        f"model.sam2.two_decoders={str(two_decoders).lower()}",
    ]
    grounding = build_grounding(load_config("tiny", settings).model.sam2).eval()
    for parameter in grounding.parameters():
        if not parameter.abs().sum():
            nn.init.normal_(parameter, std=0.3)
    if two_decoders:
        for parameter in grounding.propagation_decoder.parameters():
            nn.init.normal_(parameter, std=0.1)
    return grounding


def masks_of(count: int) -> Masks:
    return Masks(torch.randn(count, 32, 32), torch.rand(count), torch.randn(count, 96), torch.randn(count, 1))


def packages_own(grounding: Grounding, features: FrameFeatures, given: dict[int, Tensor], reverse: bool) -> dict:
    """What `SAM2Base.track_step` gives for every frame after (before) the first given one."""

    def step(frame: int, mask: Tensor | None, bank: dict[str, Any] | None) -> dict[str, Any]:
        one = features.at(torch.tensor([frame]))
        levels = [*grounding.fine_levels(one, grounding.sam_mask_decoder), one.stride16]
        rows = [level.expand(OBJECTS, -1, -1, -1).flatten(2).permute(2, 0, 1) for level in levels]
        position = one.position.expand(OBJECTS, -1, -1, -1).flatten(2).permute(2, 0, 1)
        return grounding.track_step(
            frame_idx=frame,
            is_init_cond_frame=mask is not None,
            current_vision_feats=rows,
            current_vision_pos_embeds=[position] * 3,
            feat_sizes=[tuple(level.shape[-2:]) for level in levels],
            point_inputs=None,
            mask_inputs=mask,
            output_dict=bank,
            num_frames=len(features),
            track_in_reverse=reverse,
        )

    bank: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    for frame, logits in given.items():
        mask = F.interpolate(logits.unsqueeze(1), (128, 128), mode="bilinear", align_corners=False) > 0
        bank["cond_frame_outputs"][frame] = step(frame, mask.float(), None)
    first = min(given)
    for frame in range(first - 1, -1, -1) if reverse else range(first + 1, len(features)):
        if frame not in given:
            bank["non_cond_frame_outputs"][frame] = step(frame, None, bank)
    return {frame: out["pred_masks"][:, 0] for frame, out in bank["non_cond_frame_outputs"].items()}


def ours(
    grounding: Grounding,
    features: FrameFeatures,
    given: dict[int, Masks],
    reverse: bool = False,
    batch: int = OBJECTS,
    **options: Any,
) -> dict[int, Tensor]:
    way = AsSam2(grounding)
    sights = way.sights(features)
    memories = {frame: way.remember(sights.at(slice(frame, frame + 1)), masks) for frame, masks in given.items()}
    bank = MemoryBank(grounding, memories, len(features), reverse=reverse, **options)
    found, first = {}, min(given)
    for frame in range(first - 1, -1, -1) if reverse else range(first + 1, len(features)):
        if frame in given:
            continue
        one, parts = sights.at(slice(frame, frame + 1)), []
        for start in range(0, OBJECTS, batch):
            recalled = bank.recall(frame, slice(start, start + batch))
            image = coloured(grounding, one.image, features.position, recalled)
            parts.append(way.follow(one.image, Decodable.of(image, one.fine)))
        bank.follow(frame, Memory.cat([memory for _, memory in parts]))
        found[frame] = torch.cat([way.seen(masks) for masks, _ in parts])
    return found


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{'scores' if kind[1] else 'plain'}")
def sam2(request) -> Grounding:
    return grounding_of(*request.param)


@pytest.fixture
def features(sam2: Grounding) -> FrameFeatures:
    torch.manual_seed(1)
    with torch.inference_mode():
        return sam2.encode(torch.randn(18, 3, 128, 128))


def let_some_be_absent(grounding: Grounding, features: FrameFeatures, given: dict[int, Tensor], reverse: bool) -> None:
    """Move the presence head's bias until some objects seem absent in some frames."""
    said: list[Tensor] = []
    head = grounding.sam_mask_decoder.pred_obj_score_head
    hook = head.register_forward_hook(lambda _, __, out: said.append(out))
    for _ in range(2):
        said.clear()
        packages_own(grounding, features, given, reverse)
        logits = torch.cat(said[len(given) :]).flatten().sort().values
        middle = logits[len(logits) // 4 : -len(logits) // 4]
        widest = int(middle.diff().argmax())  # far from any one, or rounding would decide
        head.layers[-1].bias -= (middle[widest] + middle[widest + 1]) / 2
    hook.remove()


@pytest.mark.parametrize("reverse", [False, True])
@torch.inference_mode()
def test_frames_are_recalled_as_the_package_does(sam2, features, reverse):
    """18 frames: more than the memory (6) and the pointers (16) reach back."""
    torch.manual_seed(2)
    at = (17, 7) if reverse else (0, 9)
    given = {frame: masks_of(OBJECTS) for frame in at}
    given[at[1]].logits[1] = -5.0  # one of the objects is not in that frame
    if reverse:
        given = {17: given[17]}
    logits = {frame: masks.logits for frame, masks in given.items()}
    if sam2.pred_obj_scores:
        let_some_be_absent(sam2, features, logits, reverse)
    theirs = packages_own(sam2, features, logits, reverse)
    found = ours(sam2, features, given, reverse)
    assert found.keys() == theirs.keys() and len(found) >= 16
    absent = torch.stack(list(theirs.values())).amax((2, 3)) == -1024
    assert bool(absent.any()) == sam2.pred_obj_scores and not bool(absent.all())
    for frame in theirs:
        assert torch.allclose(found[frame], theirs[frame], atol=1e-5), frame


@torch.inference_mode()
def test_objects_in_batches_are_the_same(sam2, features):
    given = {0: masks_of(OBJECTS), 4: masks_of(OBJECTS)}
    whole, parts = ours(sam2, features, given), ours(sam2, features, given, batch=2)
    assert all(torch.allclose(whole[frame], parts[frame], atol=1e-5) for frame in whole)


@pytest.mark.slow
@torch.inference_mode()
def test_a_shorter_memory_is_another_result_and_nothing_grows_with_the_video(sam2, features):
    given = {0: masks_of(OBJECTS), 9: masks_of(OBJECTS)}
    whole = ours(sam2, features, given)
    assert all(torch.equal(one, whole[frame]) for frame, one in ours(sam2, features, given, recent=6).items())
    for fewer in ({"recent": 2}, {"conditioning": 1}):
        other = ours(sam2, features, given, **fewer)
        assert not torch.allclose(other[17], whole[17], atol=1e-6), fewer
    way = AsSam2(sam2)
    bank = MemoryBank(sam2, {0: way.remember(way.sights(features.at(slice(0, 1))), given[0])}, 1000)
    for frame in range(1, 100):
        bank.follow(frame, bank.given[0])
    assert sum(memory.spatial.numel() > 0 for memory in bank.followed.values()) == 6
    assert len(bank.followed) == 16


@torch.inference_mode()
def test_the_second_decoder_propagates_and_the_first_one_is_asked():
    both = grounding_of("2", False, two_decoders=True)
    features = both.encode(torch.randn(4, 3, 128, 128))
    given = {0: masks_of(OBJECTS)}
    by_second = ours(both, features, given)
    with_language = both.decode(both.decodable(features), torch.randn(4, 96), True).logits
    second = both.propagation_decoder
    both.propagation_decoder = None
    assert not torch.allclose(by_second[1], ours(both, features, given)[1])
    both.sam_mask_decoder, first = second, both.sam_mask_decoder
    assert torch.equal(by_second[1], ours(both, features, given)[1])
    assert first is not second and with_language.shape == (4, 32, 32)


@torch.inference_mode()
def test_the_released_way_keeps_logits_where_the_object_seems_absent():
    one = grounding_of("2", True)
    features = one.encode(torch.randn(3, 3, 128, 128))
    ways = AsSam2(one), AsSa2va(one, best_of_three=True)
    one_frame = ways[0].sights(features.at(slice(0, 1)))
    rows = Decodable.of(torch.randn(OBJECTS, 96, 8, 8), one_frame.fine)
    one.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(-100.0)
    (replaced, _), (kept, memory) = (way.follow(one_frame.image, rows) for way in ways)
    assert bool((ways[0].seen(replaced) == -1024).all()) and bool((ways[1].seen(kept).abs() < 100).all())
    assert memory.spatial.dtype == torch.bfloat16
