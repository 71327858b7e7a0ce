"""What the pixels attend to: which of an expression's tokens, or what one vector is made of them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pooling = Literal["tokens", "mean", "cls", "attention"]


class Text(NamedTuple):
    """What the router keeps.

    Attributes:
        tokens: (M, k, C).
        log_weight: (M, k) log of the router's probability of each kept token; −inf on padding.
        mass: (M, 1, 1) probability of all kept tokens together.
        mean: (M, C) of all tokens.
    """

    tokens: Tensor
    log_weight: Tensor
    mass: Tensor
    mean: Tensor


class TopKRouter(nn.Module):
    """Keeps the k language tokens that matter, or makes one of them.

    Choosing alone carries no gradient, so the probabilities of the chosen tokens go on into the attention: relative to
    each other as a weight on the keys, and together (`mass`) as a weight on the result, which is what teaches a router
    with k = 1. The poolings `mean` and `cls` choose nothing.
    """

    def __init__(self, width: int, topk: int | None, pooling: Pooling = "tokens") -> None:
        super().__init__()
        self.topk, self.pooling = topk, pooling
        self.score = nn.Linear(width, 1) if pooling in ("tokens", "attention") else None

    def forward(self, tokens: Tensor, valid: Tensor, everything: bool = False) -> Text:
        """Select.

        Args:
            tokens: (M, N, C), the state at `[SEG]` last.
            valid: (M, N) False on padding; at least one True per row.
            everything: keep all tokens, weighed: what is never kept never shows its worth.

        Among equal scores the earlier token wins; rows with fewer than k valid tokens keep all of them.
        """
        mean = (tokens * valid.unsqueeze(-1)).sum(1) / valid.sum(1, keepdim=True)
        if self.score is None:
            one = tokens[:, -1:] if self.pooling == "cls" else mean.unsqueeze(1)
            return _alone(one, one.new_ones(len(one), 1, 1, dtype=torch.float32), mean)
        score = self.score(tokens).squeeze(-1).float().masked_fill(~valid, float("-inf"))
        log_probability = F.log_softmax(score, dim=-1)
        k = tokens.shape[1] if self.topk is None or everything else min(self.topk, tokens.shape[1])
        chosen = torch.sort(log_probability, dim=-1, descending=True, stable=True).indices[:, :k]
        log_weight = log_probability.gather(1, chosen)
        kept = tokens.gather(1, chosen.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        weight = log_weight.exp().unsqueeze(-1)
        mass = weight.sum(1, keepdim=True)
        if self.pooling == "attention":
            return _alone((weight / mass * kept).sum(1, keepdim=True).to(kept.dtype), mass, mean)
        return Text(kept, log_weight, mass, mean)


def _alone(token: Tensor, mass: Tensor, mean: Tensor) -> Text:
    """One vector (M, 1, C) for all pixels."""
    return Text(token, mass.new_zeros(len(token), 1), mass, mean)
