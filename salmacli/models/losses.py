"""Losses of a training step. Every one is a mean over what it has, and exactly 0 where it has nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from salmacli.config.schema import LossConfig
from salmacli.data.collate import Batch
from salmacli.models.salma import Outputs

CONTRAST_TEMPERATURE = 0.07
OVERSAMPLING, IMPORTANCE = 3, 0.75


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int) -> Tensor:
    """Where to compare: mostly where the mask is undecided, else anywhere.

    Args:
        logits: (P, h, w).
        count: N, points per mask.

    Returns:
        (P, N, 2) x and y in [−1, 1], as `grid_sample` wants them.

    Source: PointRend (Kirillov et al., CVPR 2020), with the constants of Mask2Former.
    """
    anywhere = torch.rand(len(logits), OVERSAMPLING * count, 2, device=logits.device) * 2 - 1
    undecided = -at_points(logits, anywhere).abs()
    kept = undecided.topk(int(IMPORTANCE * count), dim=1).indices
    chosen = anywhere.gather(1, kept.unsqueeze(-1).expand(-1, -1, 2))
    rest = torch.rand(len(logits), count - chosen.shape[1], 2, device=logits.device) * 2 - 1
    return torch.cat([chosen, rest], dim=1)


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of (P, h, w) maps at (P, N, 2) points: (P, N)."""
    return F.grid_sample(maps.float().unsqueeze(1), points.unsqueeze(1), align_corners=False)[:, 0, 0]


def mask_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy on logits: (P, N), (P, N) → scalar."""
    return F.binary_cross_entropy_with_logits(logits, targets) if len(logits) else logits.sum()


def mask_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − (2·|A∩B| + 1) / (|A| + |B| + 1) on probabilities, (P, N), (P, N) → mean over masks.

    The 1 makes empty masks well defined.
    """
    if not len(logits):
        return logits.sum()
    probability = logits.sigmoid()
    overlap = 2 * (probability * targets).sum(-1) + 1
    return (1 - overlap / (probability.sum(-1) + targets.sum(-1) + 1)).mean()


def iou_regression(predicted: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Squared error of the predicted IoU (P,) against that of the thresholded masks; both empty counts as 1.

    The masks are compared at the logits' size (P, h, w), to which the targets (P, S, S) are reduced.
    """
    if not len(logits):
        return predicted.sum()
    with torch.no_grad():
        small = F.interpolate(targets.unsqueeze(1).float(), logits.shape[-2:], mode="area")[:, 0]
        mask, truth = (logits > 0).flatten(1), small.flatten(1) > 0.5
        union = (mask | truth).sum(-1)
        true = torch.where(union > 0, (mask & truth).sum(-1) / union.clamp(min=1), torch.ones_like(predicted))
    return F.mse_loss(predicted.float(), true.float())


def text_mask_contrast(said: Tensor, looks: Tensor, rivals: Tensor) -> Tensor:
    """Symmetric InfoNCE between what is said of an object and what it looks like.

    Args:
        said, looks: (P, C).
        rivals: (P, P) symmetric, True where two rows are held against each other. A row without a rival says nothing.

    Source: CLIP (Radford et al., ICML 2021), with SALMA's masks.
    """
    contested = rivals.any(1)
    said, looks, rivals = said[contested], looks[contested], rivals[contested][:, contested]
    if not len(said):
        return said.sum()
    similarity = F.normalize(said.float(), dim=-1) @ F.normalize(looks.float(), dim=-1).T / CONTRAST_TEMPERATURE
    row = torch.arange(len(said), device=said.device)
    similarity = similarity.masked_fill(~rivals & (row != row[:, None]), float("-inf"))
    return (F.cross_entropy(similarity, row) + F.cross_entropy(similarity.T, row)) / 2


def answer_cross_entropy(vocabulary: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy of the answers' tokens: (A, V), (A,) → scalar."""
    return F.cross_entropy(vocabulary.float(), answers) if len(answers) else vocabulary.sum()


def total_loss(outputs: Outputs, batch: Batch, config: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum and each part by itself, unweighted and detached.

    Masks are compared at sampled points, BCE and Dice at the same ones.
    """
    masks, targets = outputs.masks, batch.targets
    points = uncertain_points(masks.logits, config.points)
    logits, truth = at_points(masks.logits, points), at_points(targets, points)
    parts = {
        "bce": mask_bce(logits, truth),
        "dice": mask_dice(logits, truth),
        "iou": iou_regression(masks.iou, masks.logits, targets),
        "lm": answer_cross_entropy(outputs.vocabulary, outputs.answers),
    }
    if config.tmc:
        terms = [text_mask_contrast(said, outputs.looks, _rivals(batch, config)) for said in outputs.said]
        parts["tmc"] = torch.stack(terms).mean()
    if outputs.prior is not None and config.prior:
        points = uncertain_points(outputs.prior, config.points)
        parts["prior"] = mask_bce(at_points(outputs.prior, points), at_points(batch.foreground, points))
    weights = {name: getattr(config, name) for name in parts}
    total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return total, {name: value.detach() for name, value in parts.items()}


def _rivals(batch: Batch, config: LossConfig) -> Tensor:
    """(P, P): which masks the contrast tells apart. Never those of one object, in other words or in another frame."""
    present = batch.targets.flatten(1).any(1)
    rivals = present & present[:, None] & (batch.identity != batch.identity[:, None])
    if config.tmc_rivals == "video":
        video = batch.seg_rows[batch.object_of]
        rivals &= video == video[:, None]
    return rivals
