"""Our model, trained with what Sa2VA's training code does beside what is needed.

Source of each line: the public code, projects/llava_sam2/models/{internvl,llava_sam2}.py at its newest commit. What a
batch without masks costs there (it encodes and decodes black frames) is not in it: the benchmark's batches have masks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmacli.config.schema import LossConfig
from salmacli.data.collate import Batch
from salmacli.models.losses import Counts, at_points, mask_bce, mask_dice, uncertain_points
from salmacli.models.salma import Salma

OBJECTS = 5  # of every video: fewer are repeated


class Naive(nn.Module):
    """In the place of `Step`."""

    def __init__(self, model: Salma, losses: LossConfig) -> None:
        super().__init__()
        self.model, self.losses = model, losses

    def forward(self, batch: Batch, counts: Counts, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.model
        out = self.hidden_states(batch)  # of every layer
        logits = model.mllm.vocabulary_logits(out[-1]).float()  # at every position
        projected = model.text_hidden_fcs(out[-1])  # every position, too
        rows = self.padded(batch)
        features = model.grounding.encode(batch.sam_pixels)
        sights = model.grounding.decodable(features).at(batch.frame_of[rows])
        seg = projected[batch.seg_rows, batch.seg_columns][batch.object_of[rows]]
        masks = model.grounding.decode(sights, seg, True).logits
        points = uncertain_points(masks, self.losses.points, batch.seeds[rows])
        ours, true = at_points(masks, points), at_points(batch.targets[rows], points)
        parts = {
            "bce": mask_bce(ours, true).mean(),
            "dice": mask_dice(ours, true).mean(),
            "lm": F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()),
        }
        total = sum(getattr(self.losses, name) * value for name, value in parts.items())
        return torch.as_tensor(total), {name: value.detach() for name, value in parts.items()}

    def hidden_states(self, batch: Batch) -> tuple[Tensor, ...]:
        mllm: Any = self.model.mllm
        looks = mllm.encode_frames(batch.mllm_pixels).flatten(0, 1)[batch.seen]
        seen = mllm._read(batch.ids, looks)
        dtype = seen["inputs_embeds"].dtype
        hidden_from = torch.zeros(batch.attention.shape, dtype=dtype, device=batch.ids.device)
        hidden_from = hidden_from.masked_fill(~batch.attention, torch.finfo(dtype).min).unsqueeze(1)
        places = mllm._places(batch.ids, batch.positions)
        language = mllm.model.model.language_model
        out = language(
            attention_mask=hidden_from, position_ids=places, use_cache=False, output_hidden_states=True, **seen
        )
        return tuple(out.hidden_states)

    def padded(self, batch: Batch) -> Tensor:
        """Which masks are decoded: those of every frame, again and again until there are enough."""
        rows = []
        for frame in range(len(batch.sam_pixels)):
            own = (batch.frame_of == frame).nonzero()[:, 0]
            rows.append(own.repeat(OBJECTS // len(own) + 1)[:OBJECTS])
        return torch.cat(rows)
