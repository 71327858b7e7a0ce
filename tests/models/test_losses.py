from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from salmacli.config.schema import LossConfig
from salmacli.data.collate import Batch
from salmacli.models.grounding import Masks
from salmacli.models.losses import (
    Counts,
    at_points,
    iou_regression,
    mask_bce,
    mask_boundary,
    mask_dice,
    not_finite,
    rivals_of,
    sobel_magnitude,
    text_mask_contrast,
    total_loss,
    uncertain_points,
)
from salmacli.models.salma import Outputs

ALL = LossConfig(points=32, prior=1.0)


def step(samples: range, seed: int = 0, unrolled: bool = True) -> tuple[Outputs, Batch]:
    """What a model says of some samples, each with 2 objects in 2 frames; the same whatever other samples there are."""
    outputs, batches = [], []
    for sample in samples:
        generator = torch.Generator().manual_seed(seed * 100 + sample)

        def random(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        outputs.append((random(4, 8, 8), random(4), random(4, 6), random(4, 1), random(2, 8, 8), random(2, 4, 6)))
        targets = random(4, 16, 16) > 0
        targets[3] &= sample % 2 == 0  # some objects are not in the frame
        batches.append((targets, random(2, 16, 16) > 0, sample * 1000 + torch.arange(4)))
    logits, iou, token, presence, prior = (torch.cat(part) for part in zip(*(o[:5] for o in outputs), strict=True))
    said = torch.cat([o[5] for o in outputs], dim=1)
    count = len(outputs)
    made = Outputs(
        masks=Masks(logits, iou, token, presence),
        prior=prior,
        said=said,
        looks=token + 1,
        answer_loss=torch.tensor([float(sample + 1) for sample in samples]),
        unrolled=unrolled,
    )
    batch = SimpleNamespace(
        names=tuple(f"sample {sample}" for sample in samples),
        targets=torch.cat([b[0] for b in batches]),
        foreground=torch.cat([b[1] for b in batches]),
        seeds=torch.cat([b[2] for b in batches]),
        frame_seeds=torch.cat([b[2][:2] for b in batches]),
        seg_rows=torch.arange(count).repeat_interleave(2),
        object_of=torch.arange(2 * count).repeat_interleave(2),
        clip_of=torch.arange(count).repeat_interleave(2),
        identity=torch.tensor([s * 10 + o for s in samples for o in (0, 0, 1, 1)]),
    )
    return made, cast(Batch, batch)


def nothing() -> tuple[Outputs, Batch]:
    """A step without masks, frames or answers."""
    made, batch = step(range(1))
    fields = {name: value[:0] for name, value in vars(batch).items()}
    masks = Masks(*(part[:0] for part in made.masks.parts()))
    empty = replace(made, masks=masks, prior=cast(Any, made.prior)[:0], said=made.said[:, :0], looks=made.looks[:0])
    return replace(empty, answer_loss=torch.zeros(1, requires_grad=True)), cast(Batch, SimpleNamespace(**fields))


def test_dice_of_empty_masks_is_small_and_finite_and_of_opposites_near_one():
    empty, sure = torch.zeros(1, 100), torch.full((1, 100), 20.0)
    assert float(mask_dice(-sure, empty)) == pytest.approx(0, abs=1e-4)
    assert float(mask_dice(sure, empty)) == pytest.approx(1 - 1 / 101, abs=1e-4)
    assert float(mask_dice(sure, torch.ones(1, 100))) == pytest.approx(0, abs=1e-4)


def test_bce_is_the_textbook_value():
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    expected = -(torch.sigmoid(logits).log() * targets).mean()
    assert torch.allclose(mask_bce(logits, targets), expected)


def test_bce_and_dice_survive_sure_mistakes_in_half_precision():
    """A logarithm of a probability, or a ratio without its 1, is infinite or not a number here."""
    logits = torch.tensor([[-200.0, 200.0]], dtype=torch.bfloat16)
    for loss in (mask_bce, mask_dice):
        for targets in (torch.zeros(1, 2), torch.ones(1, 2)):
            assert bool(loss(logits.float(), targets).isfinite().all())


def test_points_are_mostly_where_the_mask_is_undecided():
    logits = torch.full((1, 32, 32), 10.0)
    logits[:, :4] = 0.0  # one eighth of the map is undecided
    values = at_points(logits, uncertain_points(logits, 400, torch.tensor([7])))
    assert values.shape == (1, 400)
    assert float((values.abs() < 5).float().mean()) > 0.3


def test_points_follow_from_the_masks_own_seed():
    logits = torch.randn(3, 16, 16)
    together = uncertain_points(logits, 20, torch.tensor([5, 2**62, 5]))
    torch.rand(1)  # nobody else's random numbers matter
    alone = uncertain_points(logits[1:2], 20, torch.tensor([2**62]))
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], uncertain_points(logits[:1], 20, torch.tensor([6]))[0])
    assert -1 <= float(together.min()) < -0.9 and 0.9 < float(together.max()) <= 1


def test_points_read_the_place_they_name():
    ramp = torch.arange(8.0).view(1, 1, 8).expand(1, 8, 8)
    centre_of_pixel_5 = torch.tensor([[[(5 + 0.5) / 8 * 2 - 1, 0.0]]])
    assert float(at_points(ramp, centre_of_pixel_5)) == pytest.approx(5.0)


def test_many_masks_are_read_as_few():
    maps, points = torch.randn(40, 8, 8), torch.rand(40, 9, 2) * 2 - 1
    assert torch.equal(at_points(maps, points)[37:38], at_points(maps[37:38], points[37:38]))


def test_iou_regression_knows_the_true_iou():
    logits, targets = torch.full((2, 8, 8), -5.0), torch.zeros(2, 8, 8)
    # A half against its upper half: IoU 1/2; the other: both empty, 1.
    logits[0, :, :4], targets[0, :4, :4] = 5.0, 1.0
    assert iou_regression(torch.tensor([0.5, 1.0]), logits, targets).tolist() == [0, 0]
    assert iou_regression(torch.tensor([1.0, 0.0]), logits, targets).tolist() == [0.25, 1.0]


def test_the_predicted_iou_learns_by_default():
    """It picks the mask and gates the memory; without a loss of its own it is stale."""
    outputs, batch = step(range(2))
    iou = outputs.masks.iou.clone().requires_grad_()
    outputs = replace(outputs, masks=replace(outputs.masks, iou=iou))
    total_loss(outputs, batch, LossConfig(points=32), Counts(8, 8, 4))[0].backward()
    assert iou.grad is not None and bool(iou.grad.all())


def test_a_straight_edge_has_magnitude_one_and_the_frame_none():
    half = torch.zeros(1, 8, 8)
    half[:, :, 4:] = 1
    expected = torch.zeros(8, 8)
    expected[:, 3:5] = 1
    for maps in (half, half.mT):
        found = sobel_magnitude(maps)[0]
        assert torch.allclose(found if maps is half else found.T, expected, atol=2e-3)


def test_boundary_of_the_same_mask_is_zero_and_of_another_is_not():
    box, elsewhere = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    box[:, 2:6, 2:6], elsewhere[:, 9:13, 9:13] = 1, 1
    sure = (box - 0.5) * 200
    assert float(mask_boundary(sure, box)) == pytest.approx(0, abs=1e-4)
    assert float(mask_boundary(sure, elsewhere)) > 0.9
    assert float(mask_boundary(sure, torch.zeros_like(box))) > 0.9
    assert float(mask_boundary(-torch.full_like(box, 100.0), torch.zeros_like(box))) == 0


def test_boundary_of_a_mask_does_not_depend_on_the_others():
    """The notes divided by the maximum of sample 0."""
    faint, strong = torch.randn(1, 16, 16) * 0.01, torch.randn(1, 16, 16) * 9
    targets = (torch.randn(2, 16, 16) > 0).float()
    alone = torch.cat([mask_boundary(faint, targets[:1]), mask_boundary(strong, targets[1:])])
    assert torch.allclose(mask_boundary(torch.cat([faint, strong]), targets), alone)


def test_boundary_of_flat_masks_has_a_finite_gradient():
    logits = torch.zeros(1, 8, 8, requires_grad=True)
    mask_boundary(logits, torch.zeros(1, 8, 8)).sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_contrast_pulls_what_belongs_together_and_spares_the_same_object():
    torch.manual_seed(0)
    said = torch.nn.functional.normalize(torch.randn(4, 16), dim=-1)
    everyone = ~torch.eye(4, dtype=torch.bool)
    assert float(text_mask_contrast(said, said, everyone).mean()) < 0.1
    assert float(text_mask_contrast(said, said.roll(1, 0), everyone).mean()) > 1
    # A row that looks like another is no mistake when both show the same object …
    twice = torch.cat([said, said[:1]])
    rivals = ~torch.eye(5, dtype=torch.bool)
    assert float(text_mask_contrast(twice, twice, rivals).mean()) > 0.2
    rivals[0, 4] = rivals[4, 0] = False
    assert float(text_mask_contrast(twice, twice, rivals).mean()) < 0.1
    # … and without rivals there is nothing to say, not even of nothing.
    alone = text_mask_contrast(said, torch.zeros_like(said), torch.zeros(4, 4, dtype=torch.bool))
    assert alone.tolist() == [0, 0, 0, 0]


def test_contrast_is_cross_entropy_both_ways():
    torch.manual_seed(0)
    said, looks = torch.randn(5, 8), torch.randn(5, 8)
    unit = torch.nn.functional.normalize
    similarity = unit(said, dim=-1) @ unit(looks, dim=-1).T / 0.07
    row = torch.arange(5)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(similarity, row) + cross_entropy(similarity.T, row)) / 2
    assert torch.allclose(text_mask_contrast(said, looks, ~torch.eye(5, dtype=torch.bool)).mean(), expected)


def test_rivals_are_other_objects_that_are_there():
    rivals = rivals_of(torch.tensor([7, 8, 7, 9]), torch.tensor([True, True, True, False]))
    assert rivals.nonzero().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]


@pytest.mark.parametrize("kind", ["batch", "video"])
def test_the_contrast_knows_other_videos_only_where_it_may(kind):
    outputs, batch = step(range(2))
    config = LossConfig(tmc_rivals=kind)
    with_both = total_loss(outputs, batch, config, Counts(1, 1, 1))[1]["tmc"]
    apart = sum(total_loss(*step(range(n, n + 1)), config, Counts(1, 1, 1))[1]["tmc"] for n in range(2))
    assert torch.isclose(with_both, apart) == (kind == "video")


def test_parts_add_up_with_their_weights():
    config = ALL.model_copy(update={"bce": 3.0, "iou": 0.25})
    total, parts = total_loss(*step(range(3)), config, Counts(12, 12, 6))
    assert set(parts) == {"bce", "dice", "iou", "boundary", "presence", "lm", "tmc", "prior"}
    assert float(total) == pytest.approx(sum(getattr(config, name) * float(value) for name, value in parts.items()))
    assert float(parts["lm"]) == (1 + 2 + 3) / 12


def test_some_losses_are_only_where_they_are_asked_for():
    outputs, batch = step(range(1), unrolled=False)
    config = ALL.model_copy(update={"tmc": 0, "boundary": 0, "prior": 0})
    assert set(total_loss(outputs, batch, config, Counts(4, 4, 2))[1]) == {"bce", "dice", "iou", "lm"}


def test_presence_knows_who_is_in_the_frame():
    outputs, batch = step(range(2))
    present = batch.targets.flatten(1).any(1, keepdim=True)
    assert not bool(present.all())
    sure = replace(outputs.masks, presence=present * 60.0 - 30)
    for masks, expected in ((sure, 0.0), (replace(sure, presence=-sure.presence), 30.0)):
        parts = total_loss(replace(outputs, masks=masks), batch, ALL, Counts(8, 8, 4))[1]
        assert float(parts["presence"]) == pytest.approx(expected, abs=1e-5)


def test_passes_add_up_to_the_batch_they_are_parts_of():
    """All but the contrast, whose rivals are those of a pass, unless they are those of a video anyway."""
    config, counts = ALL.model_copy(update={"tmc_rivals": "video"}), Counts(16, 16, 8)
    whole, parts = total_loss(*step(range(4)), config, counts)
    passes = [total_loss(*step(some), config, counts) for some in (range(1), range(1, 4))]
    assert torch.allclose(sum(one for one, _ in passes), whole)
    for name, value in parts.items():
        assert torch.allclose(sum(one[name] for _, one in passes), value), name


def test_contrast_and_boundary_grow_and_are_never_zero():
    outputs, batch = step(range(2))
    counts, config = Counts(8, 8, 4), ALL.model_copy(update={"bce": 0, "dice": 0, "iou": 0, "lm": 0, "prior": 0})
    config = config.model_copy(update={"presence": 0})
    full = float(total_loss(outputs, batch, config, counts)[0])
    at = [float(total_loss(outputs, batch, config, counts, progress=p)[0]) for p in (0.01, 0.1, 0.2, 0.7)]
    assert at == pytest.approx([full / 20, full / 2, full, full])
    sudden = config.model_copy(update={"ramp": 0})
    assert float(total_loss(outputs, batch, sudden, counts, progress=0.01)[0]) == pytest.approx(full)


def test_nothing_gives_exactly_zero_that_can_be_gone_back_from():
    outputs, batch = nothing()
    total, parts = total_loss(outputs, batch, ALL, Counts(0, 0, 0))
    total.backward()
    assert set(parts) == {"bce", "dice", "iou", "boundary", "presence", "lm", "tmc", "prior"}
    assert [float(value) for value in parts.values()] == [0] * 8 and float(total.detach()) == 0
    assert outputs.answer_loss.grad is not None


def test_half_precision_around_it_changes_nothing():
    outputs, batch = step(range(2))
    plain = total_loss(outputs, batch, ALL, Counts(8, 8, 4))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(total_loss(outputs, batch, ALL, Counts(8, 8, 4))[0], plain)


def test_samples_that_are_not_finite_are_named():
    outputs, batch = step(range(4))
    assert not_finite(outputs, batch) == ()
    outputs.masks.logits[5, 0, 0] = torch.nan
    assert not_finite(outputs, batch) == ("sample 1",)
    outputs.answer_loss[3] = torch.inf
    cast(Any, outputs.prior)[0] = torch.nan
    assert not_finite(outputs, batch) == ("sample 0", "sample 1", "sample 3")
    assert not_finite(*nothing()) == ()
