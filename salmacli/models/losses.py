"""Losses of a training step. Every one is a mean over what it has, and exactly 0 where it has nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from salmacli.config.schema import LossConfig
from salmacli.data.collate import Batch
from salmacli.models.salma import Outputs


def mask_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy on logits: (P, H, W), (P, H, W) → scalar."""
    return F.binary_cross_entropy_with_logits(logits, targets) if len(logits) else logits.sum()


def mask_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − (2·|A∩B| + 1) / (|A| + |B| + 1) on probabilities, mean over masks; the 1 makes empty masks well defined."""
    if not len(logits):
        return logits.sum()
    probability = logits.sigmoid().flatten(1)
    truth = targets.flatten(1)
    overlap = 2 * (probability * truth).sum(-1) + 1
    return (1 - overlap / (probability.sum(-1) + truth.sum(-1) + 1)).mean()


def iou_regression(predicted: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Squared error of the predicted IoU (P,) against that of the thresholded masks; both empty counts as 1."""
    if not len(logits):
        return predicted.sum()
    with torch.no_grad():
        mask, truth = (logits > 0).flatten(1), targets.flatten(1) > 0.5
        union = (mask | truth).sum(-1)
        true = torch.where(union > 0, (mask & truth).sum(-1) / union.clamp(min=1), torch.ones_like(predicted))
    return F.mse_loss(predicted.float(), true.float())


def answer_cross_entropy(vocabulary: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy of the answers' tokens: (A, V), (A,) → scalar."""
    return F.cross_entropy(vocabulary.float(), answers) if len(answers) else vocabulary.sum()


def total_loss(outputs: Outputs, batch: Batch, config: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum and each part by itself, unweighted and detached.

    Masks are compared at the frames' size S×S, to which the decoder's logits are resized, as at prediction.
    """
    size = batch.targets.shape[-2:]
    targets = batch.targets.float()

    def resized(logits: Tensor) -> Tensor:
        return F.interpolate(logits.float().unsqueeze(1), size, mode="bilinear", align_corners=False)[:, 0]

    logits = resized(outputs.masks.logits)
    parts = {
        "bce": mask_bce(logits, targets),
        "dice": mask_dice(logits, targets),
        "iou": iou_regression(outputs.masks.iou, logits, targets),
        "lm": answer_cross_entropy(outputs.vocabulary, outputs.answers),
    }
    if outputs.prior is not None and config.prior:
        parts["prior"] = mask_bce(resized(outputs.prior), batch.foreground.float())
    weights = {name: getattr(config, name) for name in parts}
    total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return total, {name: value.detach() for name, value in parts.items()}
