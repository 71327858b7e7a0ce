"""The mix → batches of one process, from any pass on."""

from __future__ import annotations

import signal
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from salmacli.config.schema import RunConfig
from salmacli.data.collate import Collator
from salmacli.data.training.mix import TrainingMix
from salmacli.data.training.order import VisitOrder
from salmacli.models.salma import Salma


def loader_of(
    config: RunConfig, mix: TrainingMix, model: Salma, first_pass: int, *, rank: int = 0, ranks: int = 1
) -> DataLoader[Any]:
    """Batches with the samples that could not be read, for ever.

    Args:
        config: batch size, workers.
        mix: what is read.
        model: says how frames and conversations are shown.
        first_pass: forward passes of this process that came before.
        rank, ranks: of this process.
    """
    order = VisitOrder(mix, config.train.batch_size, rank=rank, ranks=ranks, first_pass=first_pass)
    workers = config.data.workers
    return DataLoader(
        cast(Any, mix),  # torch asks no more of a data set than to be read by key
        batch_sampler=order,
        collate_fn=collator_of(model, config.data.max_tokens),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_ignore_interrupts,
        pin_memory=torch.cuda.is_available(),
        # Without one of its own the loader draws from torch's generator, and a resumed run would go another way.
        generator=torch.Generator(),
    )


def collator_of(model: Salma, max_tokens: int) -> Collator:
    """What makes batches for a model, of conversations of at most so many tokens."""
    mllm = model.mllm
    return Collator(
        model.tokenizer,
        mllm.frame_size,
        mllm.tokens_per_frame,
        model.config.sam2.image_size,
        mllm.chat,
        mllm.mean,
        mllm.std,
        model.tiles,
        max_tokens,
    )


def _ignore_interrupts(worker: int) -> None:
    """Terminals and schedulers ask the readers to end, too; they do when the trainer, which still needs them, does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
