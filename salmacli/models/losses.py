"""Losses of a training step.

Every one is a sum over what this process has in this pass, divided by a count of all processes and all passes of the
optimiser step (`Counts`). So it does not matter over how many of them a batch is spread, and where there is nothing,
a loss is exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from salmacli.config.schema import LossConfig
from salmacli.data.collate import Batch
from salmacli.models.gathering import gather_rows, process_count
from salmacli.models.salma import Outputs

CONTRAST_TEMPERATURE = 0.07
OVERSAMPLING, IMPORTANCE = 3, 0.75
RAMPED = ("tmc", "boundary")
# Masks have the size of SAM 2's frames and one byte per pixel; so many at a time become floating-point numbers.
_AT_ONCE = 16
# The steepness of a magnitude at 0, in units of a full step between two pixels.
_SOFT = 1e-3


@dataclass(frozen=True)
class Counts:
    """How much there is in all passes and processes of an optimiser step, per process.

    Attributes:
        masks: P.
        answers: tokens that have labels.
        frames: F, those that are decoded.
    """

    masks: float
    answers: float
    frames: float


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int, seeds: Tensor) -> Tensor:
    """Where to compare: mostly where the mask is undecided, else anywhere.

    Args:
        logits: (P, h, w).
        count: N, points per mask.
        seeds: (P,) int64; the points of a mask follow from its own seed, whatever else there is.

    Returns:
        (P, N, 2) x and y in [−1, 1], as `grid_sample` wants them.

    Source: PointRend (Kirillov et al., CVPR 2020), with the constants of Mask2Former.
    """
    important = int(IMPORTANCE * count)
    drawn = logits.new_empty(len(logits), OVERSAMPLING * count + count - important, 2, dtype=torch.float32)
    generator = torch.Generator(logits.device)
    for row, seed in zip(drawn, seeds.tolist(), strict=True):
        row.uniform_(-1, 1, generator=generator.manual_seed(seed))
    anywhere, rest = drawn.split([OVERSAMPLING * count, count - important], dim=1)
    undecided = -at_points(logits, anywhere).abs()
    kept = undecided.topk(important, dim=1).indices
    return torch.cat([anywhere.gather(1, kept.unsqueeze(-1).expand(-1, -1, 2)), rest], dim=1)


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of (P, h, w) maps at (P, N, 2) points: (P, N)."""
    values = [
        F.grid_sample(some.float().unsqueeze(1), at.unsqueeze(1), align_corners=False)[:, 0, 0]
        for some, at in zip(maps.split(_AT_ONCE), points.split(_AT_ONCE), strict=True)
    ]
    return torch.cat(values)


def mask_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy on logits, mean over points: (P, N), (P, N) → (P,)."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)


def mask_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − (2·|A∩B| + 1) / (|A| + |B| + 1) on probabilities: (P, N), (P, N) → (P,).

    The 1 makes empty masks well defined.
    """
    probability = logits.sigmoid()
    overlap = 2 * (probability * targets).sum(-1) + 1
    return 1 - overlap / (probability.sum(-1) + targets.sum(-1) + 1)


def mask_boundary(logits: Tensor, targets: Tensor) -> Tensor:
    """L1 between the Sobel magnitudes of probabilities and of the target: (P, h, w), (P, h, w) → (P,).

    Of each mask by itself, as a share of all boundary that there is in either: small objects count as much as large
    ones, an empty target is well defined (by the 1, as in Dice), and no mask scales another's loss.
    """
    ours, true = sobel_magnitude(logits.float().sigmoid()), sobel_magnitude(targets.float())
    scale = (ours.detach() + true).sum((-2, -1)) + 1
    return (ours - true).abs().sum((-2, -1)) / scale


def sobel_magnitude(maps: Tensor) -> Tensor:
    """How steep (P, h, w) maps are at each pixel, 1 where a straight edge from 0 to 1 lies between two: (P, h, w)."""
    across = maps.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    # Where the picture ends there is no edge.
    padded = F.pad(maps.unsqueeze(1), (1, 1, 1, 1), mode="replicate") if len(maps) else maps.unsqueeze(1)
    squared = F.conv2d(padded, torch.stack([across, across.T]).unsqueeze(1)).square().sum(1)
    # The root alone has no slope where a map is flat.
    return (squared + _SOFT**2).sqrt() - _SOFT


def iou_regression(predicted: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Squared error of the predicted IoU against that of the thresholded masks; both empty counts as 1.

    Args:
        predicted: (P,).
        logits, targets: (P, h, w), compared where the logits are above 0 and the targets above 1/2.

    Returns:
        (P,).
    """
    with torch.no_grad():
        mask, truth = (logits > 0).flatten(1), targets.flatten(1) > 0.5
        union = (mask | truth).sum(-1)
        true = torch.where(union > 0, (mask & truth).sum(-1) / union.clamp(min=1), 1.0)
    return (predicted.float() - true).square()


def text_mask_contrast(said: Tensor, looks: Tensor, rivals: Tensor) -> Tensor:
    """Symmetric InfoNCE between what is said of an object and what it looks like.

    Args:
        said, looks: (P, C).
        rivals: (P, P) symmetric, True where two rows are held against each other. A row without a rival says nothing.

    Returns:
        (P,).

    Source: CLIP (Radford et al., ICML 2021), with SALMA's masks.
    """
    similarity = F.normalize(said.float(), dim=-1) @ F.normalize(looks.float(), dim=-1).T / CONTRAST_TEMPERATURE
    itself = torch.eye(len(said), dtype=torch.bool, device=said.device)
    similarity = similarity.masked_fill(~(rivals | itself), float("-inf"))
    return (similarity.logsumexp(0) + similarity.logsumexp(1)) / 2 - similarity.diagonal()


def rivals_of(identity: Tensor, present: Tensor) -> Tensor:
    """(P, P): which masks the contrast tells apart. Never those of one object, in other words or in another frame.

    Args:
        identity: (P,) equal for the same object.
        present: (P,) False where the object is not in the frame.
    """
    return present & present[:, None] & (identity != identity[:, None])


def total_loss(
    outputs: Outputs,
    batch: Batch,
    config: LossConfig,
    counts: Counts,
    *,
    progress: float = 1.0,
    gather: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and each part by itself, unweighted and detached.

    Their means over all processes, summed over the passes of a step, are the losses of the step.

    Args:
        outputs: of the model.
        batch: what they are for.
        config: weights.
        counts: of the whole step.
        progress: share of the training that is done after this step, in (0, 1].
        gather: hold the masks of all processes against each other; all must call this then.
    """
    # The contrast's temperature makes much of small differences; lower precision has none of them.
    with torch.autocast(outputs.said.device.type, enabled=False):
        parts = _mask_parts(outputs, batch, config, counts)
        parts["lm"] = outputs.answer_loss.sum() / (counts.answers or 1)
        if config.tmc:
            parts["tmc"] = _contrast(outputs, batch, config, gather) / (counts.masks or 1)
        if config.prior and outputs.prior is not None:
            points = uncertain_points(outputs.prior, config.points, batch.frame_seeds)
            terms = mask_bce(at_points(outputs.prior, points), at_points(batch.foreground, points))
            parts["prior"] = terms.sum() / (counts.frames or 1)
    ramp = min(1.0, progress / config.ramp) if config.ramp else 1.0
    weights = {name: getattr(config, name) * (ramp if name in RAMPED else 1.0) for name in parts}
    total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return total, {name: value.detach() for name, value in parts.items()}


def not_finite(outputs: Outputs, batch: Batch) -> tuple[str, ...]:
    """Names of the samples that themselves, not by way of the others, make a loss that is not finite."""
    masks, sample_of = outputs.masks, batch.seg_rows[batch.object_of]
    found = [(outputs.answer_loss, torch.arange(len(outputs.answer_loss)))]
    found += [(values, sample_of) for values in (masks.logits, masks.iou, masks.presence, outputs.looks)]
    found += [(values, sample_of) for values in outputs.said]
    if outputs.prior is not None:
        found.append((outputs.prior, batch.clip_of))
    rows: set[int] = set()
    for values, sample in found:
        finite = values.detach().unsqueeze(-1).flatten(1).isfinite().all(1)
        rows.update(sample.to(finite.device)[~finite].tolist())
    return tuple(batch.names[row] for row in sorted(rows))


def _mask_parts(outputs: Outputs, batch: Batch, config: LossConfig, counts: Counts) -> dict[str, Tensor]:
    """What compares each mask with its own target. BCE and Dice do at the same points."""
    masks, targets = outputs.masks, batch.targets
    points = uncertain_points(masks.logits, config.points, batch.seeds)
    logits, truth = at_points(masks.logits, points), at_points(targets, points)
    small = _reduced(targets, masks.logits.shape[-2:])
    terms = {
        "bce": mask_bce(logits, truth),
        "dice": mask_dice(logits, truth),
        "iou": iou_regression(masks.iou, masks.logits, small),
    }
    if config.boundary:
        terms["boundary"] = mask_boundary(masks.logits, small)
    if config.presence and outputs.unrolled:
        terms["presence"] = mask_bce(masks.presence.float(), _present(batch).unsqueeze(1).float())
    return {name: values.sum() / (counts.masks or 1) for name, values in terms.items()}


def _contrast(outputs: Outputs, batch: Batch, config: LossConfig, gather: bool) -> Tensor:
    """Sum of the contrast over the masks of this process; with `gather`, over those of all processes, per process."""
    said, looks = list(outputs.said), outputs.looks
    identity, present, share = batch.identity, _present(batch), 1
    if config.tmc_rivals == "video":
        sample = batch.seg_rows[batch.object_of]
        rivals = rivals_of(identity, present) & (sample == sample[:, None])
    else:
        if gather:
            *said, looks = gather_rows(torch.stack([*said, looks], dim=1).float()).unbind(1)
            identity, there = gather_rows(torch.stack([identity, present.long()], dim=1)).unbind(1)
            present, share = there > 0, process_count()
        rivals = rivals_of(identity, present)
    terms = torch.stack([text_mask_contrast(one, looks, rivals) for one in said])
    return terms.mean(0).sum() / share


def _present(batch: Batch) -> Tensor:
    """(P,) whether the object is in the frame."""
    return batch.targets.flatten(1).any(1)


def _reduced(masks: Tensor, size: Sequence[int]) -> Tensor:
    """(P, S, S) bool → (P, h, w), the share of each pixel that the mask covers."""
    parts = [F.interpolate(some.unsqueeze(1).float(), tuple(size), mode="area") for some in masks.split(_AT_ONCE)]
    return torch.cat(parts)[:, 0]
