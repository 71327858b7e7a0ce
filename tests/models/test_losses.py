from __future__ import annotations

import pytest
import torch

from salmacli.models.losses import (
    answer_cross_entropy,
    at_points,
    iou_regression,
    mask_bce,
    mask_dice,
    text_mask_contrast,
    uncertain_points,
)


def test_dice_of_empty_masks_is_small_and_finite_and_of_opposites_near_one():
    empty, sure = torch.zeros(1, 100), torch.full((1, 100), 20.0)
    assert float(mask_dice(-sure, empty)) == pytest.approx(0, abs=1e-4)
    assert float(mask_dice(sure, empty)) == pytest.approx(1 - 1 / 101, abs=1e-4)
    assert float(mask_dice(sure, torch.ones(1, 100))) == pytest.approx(0, abs=1e-4)


def test_bce_is_the_textbook_value():
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    expected = -(torch.sigmoid(logits).log() * targets).mean()
    assert torch.allclose(mask_bce(logits, targets), expected)


@pytest.mark.parametrize("loss", [mask_bce, mask_dice])
def test_no_masks_give_exactly_zero_with_a_gradient(loss):
    logits = torch.zeros(0, 16, requires_grad=True)
    value = loss(logits, torch.zeros(0, 16))
    value.backward()
    assert float(value) == 0 and logits.grad is not None


def test_no_answers_give_zero():
    assert float(answer_cross_entropy(torch.zeros(0, 7), torch.zeros(0, dtype=torch.long))) == 0


def test_points_are_mostly_where_the_mask_is_undecided():
    torch.manual_seed(0)
    logits = torch.full((1, 32, 32), 10.0)
    logits[:, :4] = 0.0  # one eighth of the map is undecided
    values = at_points(logits, uncertain_points(logits, 400))
    assert values.shape == (1, 400)
    assert float((values.abs() < 5).float().mean()) > 0.3


def test_points_read_the_place_they_name():
    ramp = torch.arange(8.0).view(1, 1, 8).expand(1, 8, 8)
    centre_of_pixel_5 = torch.tensor([[[(5 + 0.5) / 8 * 2 - 1, 0.0]]])
    assert float(at_points(ramp, centre_of_pixel_5)) == pytest.approx(5.0)


def test_iou_regression_knows_the_true_iou():
    logits, targets = torch.full((2, 8, 8), -5.0), torch.zeros(2, 16, 16, dtype=torch.bool)
    logits[0, :, :4], targets[0, :8, :8] = (
        5.0,
        True,
    )  # a half against its upper half: IoU 1/2; the other: both empty, 1
    assert float(iou_regression(torch.tensor([0.5, 1.0]), logits, targets)) == pytest.approx(0, abs=1e-6)
    assert float(iou_regression(torch.tensor([1.0, 1.0]), logits, targets)) == pytest.approx(0.125)


def test_contrast_pulls_what_belongs_together_and_spares_the_same_object():
    torch.manual_seed(0)
    said = torch.nn.functional.normalize(torch.randn(4, 16), dim=-1)
    all_rivals = ~torch.eye(4, dtype=torch.bool)
    assert float(text_mask_contrast(said, said, all_rivals)) < 0.1
    assert float(text_mask_contrast(said, said.roll(1, 0), all_rivals)) > 1
    # A row that looks like another is no mistake when both show the same object …
    twice = torch.cat([said, said[:1]])
    rivals = ~torch.eye(5, dtype=torch.bool)
    assert float(text_mask_contrast(twice, twice, rivals)) > 0.2
    rivals[0, 4] = rivals[4, 0] = False
    assert float(text_mask_contrast(twice, twice, rivals)) < 0.1
    # … and without rivals there is nothing to say.
    assert float(text_mask_contrast(said, said.roll(1, 0), torch.zeros(4, 4, dtype=torch.bool))) == 0
