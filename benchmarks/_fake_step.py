"""A whole training step on tensors without data: the most bytes that are alive, whatever the size of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _live_bytes import LiveBytes
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from salmacli.checkpoints.empty import empty_model
from salmacli.config.schema import RunConfig
from salmacli.data.collate import Batch
from salmacli.data.conversation import Turn
from salmacli.data.training.clips import Clip
from salmacli.engine.estimate import Load
from salmacli.engine.training.loader import collator_of
from salmacli.engine.training.step import Step, counts_of
from salmacli.models.mllm import chat_of
from salmacli.models.salma import Salma
from salmacli.models.tokenizer import build_tokenizer
from salmacli.models.trained import prepare_training
from salmacli.models.unrolled import Unrolling

EXPRESSION, QUESTION, ANSWER = "the small cat on the left", "Please segment {expression}.", "Sure, [SEG]."
_FAKE = FakeTensorMode(allow_non_fake_inputs=True)


def model_of(config: RunConfig, *, bf16: bool) -> Salma:
    """Prepared for training as the trainer does it, of shapes alone."""
    mllm = config.model.mllm
    model = empty_model(config.model, build_tokenizer([EXPRESSION], mllm.vocabulary, chat_of(mllm)))
    prepare_training(model, config, bf16=bf16)
    if config.train.memory:
        model.unroll = Unrolling(config.data.prompted_frames, config.train.gradient_checkpointing)
    if config.train.gradient_checkpointing:
        model.mllm.checkpoint_activations()
    return model


def clips_of(config: RunConfig, samples: int) -> list[Clip]:
    """Black videos, all of them with as many expressions and frames as the settings allow."""
    frames, objects = config.data.decoded_frames, config.data.expressions
    black = np.zeros((60, 80, 3), np.uint8)
    masks = np.zeros((objects, frames, 60, 80), bool)
    masks[:, :, 20:40, 30:60] = True
    turn = Turn(QUESTION, ANSWER, EXPRESSION)
    return [
        Clip(
            name=f"clip {n}",
            shown=(black,) * config.model.clip_frames,
            frames=(black,) * frames,
            dialogues=((turn,),) * objects,
            targets=tuple((str(one),) for one in range(objects)),
            masks=masks,
            foreground=masks.any(0),
            seed=n,
        )
        for n in range(samples)
    ]


def batch_of(model: Salma, clips: list[Clip]) -> Batch:
    return collator_of(model, max_tokens=8192).batch(clips)


def load_of(batch: Batch) -> Load:
    """What a batch holds."""
    return Load(
        samples=len(batch.ids),
        tokens=batch.ids.shape[1],
        pictures=len(batch.mllm_pixels),
        frames=len(batch.sam_pixels),
        masks=len(batch.frame_of),
        answers=int((batch.labels >= 0).sum()),
    )


def measured_peak(model: Salma, config: RunConfig, batch: Batch, *, bf16: bool) -> int:
    """Most bytes that are alive at once in a step, the optimiser's state and the batch among them.

    Args:
        model: of `model_of`; it becomes a fake one.
        config: of the run.
        batch: its large tensors become fake, too; what steers the code keeps its numbers.
        bf16: matrices are multiplied in it.
    """
    _fake(model)
    large = {name: _like(one) for name, one in vars(batch).items() if isinstance(one, Tensor) and one.ndim > 2}
    batch = replace(batch, **large)
    step = Step(model.train(), config.losses, several=False)
    trained = [one for one in model.parameters() if one.requires_grad]
    state = [_like(one) for one in trained for _ in range(2)]  # AdamW's moments
    if config.train.accumulate > 1:
        for one in trained:
            one.grad = _like(one)  # of an earlier pass
            state.append(one.grad)
    with LiveBytes() as live, _fused_attention():
        live.hold([list(model.parameters()), list(model.buffers()), state, list(vars(batch).values())])
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            loss, _ = step(batch, counts_of(batch), 1.0)
        loss.backward()
    return live.peak


@contextmanager
def _fused_attention() -> Iterator[None]:
    """As on a GPU: on the CPU attention with dropout would be taken apart, and keep every weight."""
    fused = F.scaled_dot_product_attention

    def without_dropout(*args: Any, dropout_p: float = 0.0, **options: Any) -> Tensor:
        return fused(*args, **options)

    F.scaled_dot_product_attention = without_dropout
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def _fake(model: nn.Module) -> None:
    """Give a model without memory parameters that look as if they lay on the CPU."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fresh = made.setdefault(id(parameter), nn.Parameter(_like(parameter), parameter.requires_grad))
                module._parameters[name] = fresh


def _like(tensor: Tensor) -> Tensor:
    with _FAKE:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
