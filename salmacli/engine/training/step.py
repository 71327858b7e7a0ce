"""One forward pass of training, as a module: what DDP, FSDP and DeepSpeed wrap as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from salmacli.config.schema import LossConfig
from salmacli.data.collate import Batch
from salmacli.models.losses import Counts, not_finite, total_loss
from salmacli.models.salma import Salma


def counts_of(batch: Batch) -> Counts:
    """What a batch has of everything that a loss is a mean over."""
    masks = len(batch.targets)
    return Counts(
        masks=float(masks),
        answers=float((batch.labels[:, 1:] >= 0).sum()),
        frames=float(len(batch.sam_pixels)) if masks else 0.0,
    )


class Step(nn.Module):
    """A batch → its share of the loss.

    Args:
        model: trains.
        losses: their weights.
        several: several processes train together, each on its own batches.
        touch: give every parameter that trains a gradient, if only of 0. Processes exchange gradients part by part, and
            one that has no mask in its batch must not leave the others waiting.

    Attributes:
        suspects: names the samples of the last pass that have something not finite of their own.
    """

    def __init__(self, model: Salma, losses: LossConfig, *, several: bool = False, touch: bool = True) -> None:
        super().__init__()
        self.model, self.losses, self.several, self.touch = model, losses, several, touch
        self.suspects: Callable[[], Sequence[str]] = tuple

    def forward(self, batch: Batch, counts: Counts, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the losses, and each of them unweighted and detached.

        Args:
            batch: on the model's device.
            counts: what the losses are divided by; see `total_loss`.
            progress: of the training, 0 to 1.
        """
        outputs = self.model(batch)
        self.suspects = lambda: not_finite(outputs, batch)
        total, parts = total_loss(outputs, batch, self.losses, counts, progress=progress, gather=self.several)
        if self.touch and (self.several or not len(batch.targets) or not len(batch.mllm_pixels)):
            total = total + self._nothing().to(total.dtype)
        return total, parts

    def _nothing(self) -> Tensor:
        """0, with a gradient (of 0) for every parameter that a batch may leave out."""
        model = self.model
        parts = (*model.mllm.parts().values(), model.text_hidden_fcs, model.grounding, model.cma)
        optional = [part for part in parts if part is not None and part is not model.mllm.parts()["language model"]]
        trained = {id(p): p for part in optional for p in part.parameters() if p.requires_grad}
        return sum((p.float().sum() for p in trained.values()), start=torch.zeros((), device=model.device)) * 0
