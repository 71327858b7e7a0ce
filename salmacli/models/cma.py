"""CrossModalAttention2D: image features attend to the words of an expression, where objects are.

    q = LN(x)              x: (M, C, H, W) image features, one row per mask
    K = V = select(text)   text: (M, N + 1, C) the expression's words and the state at [SEG]
    a = W_o MHA(q, K, V)
    a = a · sigmoid(prior / tau)              gate mode; bias mode moves attention between the text and nothing
    y = x + s · gamma · a                     gamma is learnt and 0 at the start, s is the warm-up

The prior is the mask that SAM 2 predicts before it has read any language. Source of the idea: SALMA's own notes,
corrected where they could not work (each correction has a test in tests/models/test_cma.py).

The features are those of stride 16. Finer levels attend after the mask decoder's own `conv_s0/s1`, where they are
narrow: with heads of the same width, but fewer of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmacli.config.schema import CmaConfig
from salmacli.models.grounding import Decodable
from salmacli.models.routing import Text, TopKRouter

# How much narrower the mask decoder's finer levels are than its image features; its mask features are as stride 4.
_NARROWER = {8: 4, 4: 8}


class ChannelGate(nn.Module):
    """How much of each channel of a finer level's message counts, seen over all its pixels.

    Source: squeeze and excitation (Hu et al., CVPR 2018), with a SiLU, which cannot die.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(width // 4, 8)
        self.excite = nn.Sequential(nn.Linear(width, narrow), nn.SiLU(), nn.Linear(narrow, width))

    def forward(self, pixels: Tensor, message: Tensor) -> Tensor:
        """Gate the message, (M, HW or 1, C); the pixels are not asked."""
        return message * torch.sigmoid(self.excite(message.mean(1, keepdim=True)))


class PixelGate(nn.Module):
    """How much of the message counts at each pixel and channel, seen there: a gated fusion."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_pixels, self.of_message = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def forward(self, pixels: Tensor, message: Tensor) -> Tensor:
        """Gate the message, (M, HW or 1, C), at the pixels (M, HW, C)."""
        return message * torch.sigmoid(self.of_pixels(pixels) + self.of_message(message))


class Attention(nn.Module):
    """How the features of one level attend.

    Args:
        width: C of the features.
        text: C of the text.
        config: of the whole.
        gate: what the message goes through on its way, if anything; called with the pixels and the message.
    """

    def __init__(self, width: int, text: int, config: CmaConfig, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.heads = math.gcd(max(1, config.heads * width // text), width)
        # To a single key everything attends with weight 1: queries and keys would never learn.
        attends = config.pooling == "tokens" or config.mba == "bias"
        self.norm = nn.LayerNorm(width) if attends or config.film else None
        self.query = nn.Linear(width, width) if attends else None
        self.key = nn.Linear(text, width) if attends else None
        self.value = nn.Linear(text, width)
        self.out = nn.Linear(width, width)
        for projection in (self.query, self.key, self.value, self.out):
            if projection is not None:
                nn.init.xavier_uniform_(projection.weight)
        if self.query is not None and self.key is not None and width == text:
            # What is alike attends to each other from the start.
            self.key.weight.data.copy_(self.query.weight.data)
        self.gamma = nn.Parameter(torch.zeros(1))  # FSDP2 refuses single numbers
        self.null_key = nn.Parameter(torch.zeros(width)) if config.mba == "bias" else None
        self.film = nn.Linear(text, 2 * width) if config.film else None
        self.gate = gate

    def attend(self, x: Tensor, text: Text, prior: Tensor, strength: Tensor) -> Tensor:
        """Attend, as often as there are layers, with the same weights.

        Args:
            x: (M, C, H, W).
            text: of M objects.
            prior: (M, H, W) logits of where objects are.
            strength: (M, 1, 1) factor on all that is added.

        Returns:
            (M, C, H, W); equal to `x` bit for bit while gamma is 0.
        """
        flat, bias = x.flatten(2).transpose(1, 2), prior.flatten(1) / self.config.tau
        # One factor for all: gradients need the message once, not at each of several products.
        factor = self.gamma * strength
        if self.config.mba == "gate":
            factor = factor * torch.sigmoid(bias).unsqueeze(-1)
        for _ in range(self.config.layers):
            flat = flat + factor.to(flat.dtype) * self._message(flat, text, bias)
        return flat.transpose(1, 2).reshape(x.shape)

    def _message(self, flat: Tensor, text: Text, prior: Tensor) -> Tensor:
        """What is added to the pixels (M, HW, C): as much, or one row where it is the same for all."""
        pixels = flat if self.norm is None else self.norm(flat)
        message = self.out(self._attention(pixels, text, prior))
        if self.film is not None:
            scale, shift = self.film(text.mean).unsqueeze(1).chunk(2, dim=-1)
            message = message + pixels * scale + shift
        return cast(Tensor, message if self.gate is None else self.gate(flat, message))

    def _attention(self, pixels: Tensor, text: Text, prior: Tensor) -> Tensor:
        """Multi-head attention (M, HW, C) with the router's weights, and in bias mode the prior, on the keys."""
        value = self.value(text.tokens)
        if self.query is None or self.key is None:
            return cast(Tensor, value)
        key = self.key(text.tokens)
        bias = text.log_weight.unsqueeze(1)  # (M, 1, k), the same for every pixel
        if self.null_key is not None:
            # One constant per pixel on all text keys would cancel in the softmax; against a null key it does not.
            null = self.null_key.to(key.dtype).expand(len(key), 1, -1)
            key, value = torch.cat([null, key], 1), torch.cat([torch.zeros_like(null), value], 1)
            bias = bias + prior.unsqueeze(-1)
            bias = torch.cat([bias.new_zeros(*bias.shape[:2], 1), bias], dim=-1)
        query, key, value = (self._by_head(part) for part in (self.query(pixels), key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.unsqueeze(1).to(query.dtype))
        return mixed.transpose(1, 2).flatten(2)

    def _by_head(self, rows: Tensor) -> Tensor:
        """(M, L, C) → (M, heads, L, C / heads)."""
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class LevelAttention(Attention):
    """The attention of a finer level, or of the mask decoder's mask features."""

    def forward(self, x: Tensor, text: Text, prior: Tensor, strength: Tensor) -> Tensor:
        """See `attend`."""
        return self.attend(x, text, prior, strength)


class CrossModalAttention2D(Attention):
    """Mask-biased cross-modal attention: that of stride 16, and what it adds to the finer levels and the decoder.

    See the module's docstring for the formula.
    """

    def __init__(self, width: int, config: CmaConfig) -> None:
        super().__init__(width, width, config)
        self.router = TopKRouter(width, config.topk, config.pooling)
        finer = {stride: width // _NARROWER[stride] for stride in config.levels if stride in _NARROWER}
        self.finer = nn.ModuleDict(
            {f"stride{stride}": LevelAttention(c, width, config, ChannelGate(c)) for stride, c in finer.items()}
        )
        narrow = width // _NARROWER[4]
        self.fusion = LevelAttention(narrow, width, config, PixelGate(narrow)) if config.decoder_fusion else None
        # A plain number and no buffer: a checkpoint taken during the warm-up must not freeze it.
        self.scale = 1.0

    def warm_up(self, step: int, total: int) -> None:
        """Set s for the optimiser step `step` (from 0) of `total`: never 0, or nothing here would get a gradient."""
        ramp = max(1, round(self.config.warmup_fraction * total))
        self.scale = min(1.0, (step + 1) / ramp)

    def forward(self, rows: Decodable, words: Tensor, words_valid: Tensor, seg: Tensor, prior: Tensor) -> Decodable:
        """Attend.

        Args:
            rows: M frames, one per mask.
            words: (M, N, C) projected states of the expression's tokens; N may be 0.
            words_valid: (M, N) False on padding.
            seg: (M, C) projected state at `[SEG]`.
            prior: (M, h, w) mask logits of the visual pre-pass, of any size.

        Returns:
            The same frames, each as its words change it; equal bit for bit while gamma is 0.
        """
        tokens = torch.cat([words, seg.unsqueeze(1)], dim=1)
        valid = torch.cat([words_valid, words_valid.new_ones(len(seg), 1)], dim=1)
        # While the attention warms up the router hears of every token before it has to choose.
        text = self.router(tokens, valid, everything=self.scale < 1)
        # The prior guides and is not taught by what it guides: a gradient would let language into it.
        prior = prior.detach().float()
        strength = self.scale * text.mass
        if self.config.adaptive_gate:
            strength = strength * (1 - 0.5 * prior.sigmoid().mean((1, 2)))[:, None, None]
        strength = strength.to(seg.dtype)

        def by(attend: Callable[..., Tensor], x: Tensor) -> Tensor:
            return attend(x, text, _resized(prior, x), strength)

        stride4, stride8 = (
            by(self.finer[name], x) if name in self.finer else x
            for name, x in zip(("stride4", "stride8"), rows.fine, strict=True)
        )
        fuse = None if self.fusion is None else partial(by, self.fusion)
        return replace(rows, image=by(self.attend, rows.image), fine=(stride4, stride8), fuse=fuse)


def _resized(prior: Tensor, like: Tensor) -> Tensor:
    """(M, h, w) logits at the size and in the type of features (M, C, H, W)."""
    size = like.shape[-2:]
    if prior.shape[-2:] != size:
        prior = F.interpolate(prior.unsqueeze(1), size, mode="bilinear", align_corners=False, antialias=True)[:, 0]
    return prior.to(like.dtype)
