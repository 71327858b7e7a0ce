"""CrossModalAttention2D: image features attend to the words of an expression, where objects are.

    q = LN(x)              x: (M, C, H, W) image features, one row per mask
    K = V = select(text)   text: (M, N + 1, C) the expression's words and the state at [SEG]
    a = W_o MHA(q, K, V)
    a = a · sigmoid(prior / tau)              gate mode; bias mode moves attention between the text and nothing
    y = x + s · gamma · a                     gamma is learnt and 0 at the start, s is the warm-up

The prior is the mask that SAM 2 predicts before it has read any language. Source of the idea: SALMA's own notes,
corrected where they could not work (each correction has a test in tests/models/test_cma.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmacli.config.schema import CmaConfig


class Selection(NamedTuple):
    """What the router keeps.

    Attributes:
        tokens: (M, k, C).
        log_weight: (M, k) log of the router's probability of each kept token; −inf on padding.
        mass: (M, 1, 1) probability of all kept tokens together.
    """

    tokens: Tensor
    log_weight: Tensor
    mass: Tensor


class TopKRouter(nn.Module):
    """Keeps the k language tokens that matter.

    Choosing alone carries no gradient, so the probabilities of the chosen tokens go on into the attention: relative to
    each other as a weight on the keys, and together (`mass`) as a weight on the result, which is what teaches a router
    with k = 1.
    """

    def __init__(self, width: int, topk: int | None) -> None:
        super().__init__()
        self.topk = topk
        self.score = nn.Linear(width, 1)

    def forward(self, tokens: Tensor, valid: Tensor, everything: bool = False) -> Selection:
        """Select.

        Args:
            tokens: (M, N, C).
            valid: (M, N) False on padding; at least one True per row.
            everything: keep all tokens, weighed: what is never kept never shows its worth.

        Among equal scores the earlier token wins; rows with fewer than k valid tokens keep all of them.
        """
        score = self.score(tokens).squeeze(-1).float().masked_fill(~valid, float("-inf"))
        log_probability = F.log_softmax(score, dim=-1)
        k = tokens.shape[1] if self.topk is None or everything else min(self.topk, tokens.shape[1])
        chosen = torch.sort(log_probability, dim=-1, descending=True, stable=True).indices[:, :k]
        log_weight = log_probability.gather(1, chosen)
        kept = tokens.gather(1, chosen.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return Selection(kept, log_weight, log_weight.exp().sum(-1)[:, None, None])


class CrossModalAttention2D(nn.Module):
    """One layer of mask-biased cross-modal attention; see the module's docstring for the formula."""

    def __init__(self, width: int, config: CmaConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(width)
        self.router = TopKRouter(width, config.topk)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        for projection in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(projection.weight)
        # What is alike attends to each other from the start.
        self.key.weight.data.copy_(self.query.weight.data)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.null_key = nn.Parameter(torch.zeros(width)) if config.mba == "bias" else None
        # A plain number and no buffer: a checkpoint taken during the warm-up must not freeze it.
        self.scale = 1.0

    def warm_up(self, step: int, total: int) -> None:
        """Set s for the optimiser step `step` (from 0) of `total`: never 0, or nothing here would get a gradient."""
        ramp = max(1, round(self.config.warmup_fraction * total))
        self.scale = min(1.0, (step + 1) / ramp)

    def forward(self, x: Tensor, words: Tensor, words_valid: Tensor, seg: Tensor, prior: Tensor) -> Tensor:
        """Attend.

        Args:
            x: (M, C, H, W).
            words: (M, N, C) projected states of the expression's tokens; N may be 0.
            words_valid: (M, N) False on padding.
            seg: (M, C) projected state at `[SEG]`.
            prior: (M, H, W) mask logits of the visual pre-pass, detached.

        Returns:
            (M, C, H, W); equal to `x` bit for bit while gamma is 0.
        """
        tokens = torch.cat([words, seg.unsqueeze(1)], dim=1)
        valid = torch.cat([words_valid, words_valid.new_ones(len(seg), 1)], dim=1)
        # While the attention warms up the router hears of every token before it has to choose.
        selection = self.router(tokens, valid, everything=self.scale < 1)
        flat = x.flatten(2).transpose(1, 2)
        attended = self.out(self._attention(self.norm(flat), selection, prior.flatten(1) / self.config.tau))
        attended = attended * selection.mass.to(attended.dtype)
        if self.config.mba == "gate":
            attended = attended * torch.sigmoid(prior.flatten(1) / self.config.tau).unsqueeze(-1).to(attended.dtype)
        y = flat + self.scale * self.gamma * attended
        return y.transpose(1, 2).reshape(x.shape)

    def _attention(self, flat: Tensor, selection: Selection, prior: Tensor) -> Tensor:
        """Multi-head attention (M, HW, C) with the router's weights, and in bias mode the prior, on the keys."""
        key, value = self.key(selection.tokens), self.value(selection.tokens)
        bias = selection.log_weight.unsqueeze(1)  # (M, 1, k), the same for every pixel
        if self.null_key is not None:
            # One constant per pixel on all text keys would cancel in the softmax; against a null key it does not.
            null = self.null_key.to(key.dtype).expand(len(key), 1, -1)
            key, value = torch.cat([null, key], 1), torch.cat([torch.zeros_like(null), value], 1)
            bias = bias + prior.unsqueeze(-1)
            bias = torch.cat([bias.new_zeros(*bias.shape[:2], 1), bias], dim=-1)
        query, key, value = (self._heads(part) for part in (self.query(flat), key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.unsqueeze(1).to(query.dtype))
        return mixed.transpose(1, 2).flatten(2)

    def _heads(self, rows: Tensor) -> Tensor:
        """(M, L, C) → (M, heads, L, C / heads)."""
        return rows.unflatten(-1, (self.config.heads, -1)).transpose(1, 2)
