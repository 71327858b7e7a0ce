"""The training loop, on Accelerate: any device count, atomic checkpoints, a stop that loses nothing."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import get_cosine_schedule_with_warmup

from salmacli.checkpoints.load import load_trainer_state
from salmacli.checkpoints.pretrained import SalmaModel
from salmacli.checkpoints.save import save_checkpoint
from salmacli.config.schema import RunConfig, TrainConfig
from salmacli.data.collate import Batch, Collator
from salmacli.data.mixing import BadClip, TrainingMix
from salmacli.engine.progress import Progress, Silent
from salmacli.engine.run_folder import RunFolder
from salmacli.errors import DataError, SalmaError
from salmacli.models.losses import total_loss
from salmacli.models.salma import Salma

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        step: optimiser steps made in all.
        checkpoint: the newest checkpoint.
        seconds: of this call, without earlier ones that it resumed.
        losses: mean of each loss over the last logged steps.
        interrupted: True when a signal stopped it.
        bad: samples that could not be read.
    """

    step: int
    checkpoint: Path
    seconds: float
    losses: dict[str, float]
    interrupted: bool
    bad: int


@dataclass
class _Log:
    """Sums since the last logged step."""

    sums: Counter[str] = field(default_factory=Counter)
    passes: int = 0
    last: dict[str, float] = field(default_factory=dict)

    def add(self, values: dict[str, float]) -> None:
        self.sums.update(values)
        self.passes += 1

    def flush(self) -> dict[str, float]:
        self.last = {name: value / max(self.passes, 1) for name, value in self.sums.items()}
        self.sums, self.passes = Counter(), 0
        return self.last


class Trainer:
    """Trains one run's model on one mix.

    Args:
        config: the whole run.
        mix: what is read.
        run: where it is written.
        progress: who is told.
    """

    def __init__(self, config: RunConfig, mix: TrainingMix, run: RunFolder, progress: Progress | None = None) -> None:
        self.config, self.mix, self.run = config, mix, run
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        self.accelerator = Accelerator(
            mixed_precision=_precision(config.train.precision),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.progress: Progress = progress if progress is not None and self.accelerator.is_main_process else Silent()
        self.log = _Log()
        self.bad = 0
        self.passes = 0  # forward passes drawn by this process, those without a readable sample included
        self.stop = False

    def fit(self, resume: Path | None = None) -> TrainingResult:
        """Train to the end, or until a signal asks to stop.

        Args:
            resume: a checkpoint folder of this run to go on from.

        Raises:
            SalmaError: a part that should learn gets no gradient, or a loss is not finite.
            DataError: more samples were unreadable than `data.max_bad_fraction` allows.
        """
        try:
            with self._logged():
                return self._fit(resume)
        finally:
            # Without it a worker may abort while the interpreter ends.
            self.accelerator.end_training()

    @contextmanager
    def _logged(self) -> Iterator[None]:
        """Write what happens to this process, its end included, into the run's logs/rank<N>.log."""
        path = self.run.path / "logs" / f"rank{self.accelerator.process_index}.log"
        path.parent.mkdir(exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)
        try:
            yield
        except BaseException as error:
            LOG.error("ended by %s: %s", type(error).__name__, error)
            raise
        finally:
            LOG.removeHandler(handler)
            handler.close()

    def _fit(self, resume: Path | None) -> TrainingResult:
        train, started = self.config.train, time.monotonic()
        set_seed(self.config.seed)
        model = self._model(resume)
        optimizer = torch.optim.AdamW(_groups(model, train), lr=train.learning_rate, betas=train.betas, fused=True)
        schedule = get_cosine_schedule_with_warmup(optimizer, round(train.warmup_fraction * train.steps), train.steps)
        first = self._restore(resume, optimizer, schedule) if resume is not None else 0
        wrapped, optimizer = self.accelerator.prepare(model, optimizer)
        self.run.forget_after(first)
        if first == 0:
            self._check_gradients(model)
        batches = iter(self._loader(model, self.passes))
        LOG.info("from step %d to %d on %s", first, train.steps, self.accelerator.device)
        self.progress.start("training", train.steps, first)
        step, saved = first, first if resume is not None else -1
        with _on_signal(self._ask_to_stop):
            while step < train.steps and not self.stop:
                figures = self._step(wrapped, model, optimizer, schedule, batches, step)
                step += 1
                self._record(step, figures, schedule.get_last_lr()[0], time.monotonic() - started)
                if step % train.save_every == 0 or step == train.steps:
                    self._save(model, optimizer, schedule, step)
                    saved = step
        if saved != step:
            self._save(model, optimizer, schedule, step)
        self.progress.finish()
        return TrainingResult(
            step,
            self._checkpoint(step),
            time.monotonic() - started,
            self.log.last or self.log.flush(),
            step < train.steps,
            self.bad,
        )

    def _step(
        self,
        wrapped: nn.Module,
        model: Salma,
        optimizer: Any,
        schedule: Any,
        batches: Iterator[Any],
        step: int,
    ) -> dict[str, float]:
        """One optimiser step over `accumulate` forward passes."""
        train = self.config.train
        if model.cma is not None:
            model.cma.warm_up(step, train.steps)
        total = 0.0
        for part in range(train.accumulate):
            batch = self._next(batches)
            synchronise = part == train.accumulate - 1
            with self.accelerator.autocast(), _quiet(self.accelerator, wrapped, not synchronise):
                loss, losses = total_loss(wrapped(batch), batch, self.config.losses)
                self.accelerator.backward(loss / train.accumulate)
            values = {"loss": float(loss.detach()), **{name: float(value) for name, value in losses.items()}}
            self._check_finite(values, step)
            self.log.add(values)
            total += values["loss"] / train.accumulate
        norm = self.accelerator.clip_grad_norm_(wrapped.parameters(), train.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": total, "grad_norm": float(norm) if norm is not None else math.nan}

    def _next(self, batches: Iterator[Any]) -> Batch:
        """The next batch that has a readable sample; unreadable ones are named, counted, and limited."""
        while True:
            batch, bad = next(batches)
            self.passes += 1
            for clip in bad:
                self._count_bad(clip)
            if batch is not None:
                return batch.to(self.accelerator.device)

    def _count_bad(self, clip: BadClip) -> None:
        self.bad += 1
        LOG.warning("dropped %s: %s", clip.name, clip.reason)
        self.progress.say(f"dropped {clip.name}: {clip.reason}")
        # Less than an epoch cannot be told from an unlucky start.
        visits = max(self.passes * self.config.train.batch_size, len(self.mix))
        allowed = max(self.config.data.max_bad_fraction * visits, 1)
        if self.bad > allowed:
            raise DataError(
                f"{self.bad} samples could not be read, the last is {clip.name}: {clip.reason}",
                f"mend the data, or raise data.max_bad_fraction = {self.config.data.max_bad_fraction}",
            )

    def _check_finite(self, values: dict[str, float], step: int) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise SalmaError(
                f"step {step}: not finite: {', '.join(wrong)}",
                "lower train.learning_rate, or take train.precision=fp32",
            )

    def _check_gradients(self, model: Salma) -> None:
        """Every part meant to train must get a gradient from the first batch, or hours would be lost."""
        batch = next(batch for batch, _ in self._loader(model, 0) if batch is not None).to(self.accelerator.device)
        if model.cma is not None:
            model.cma.warm_up(0, self.config.train.steps)
        with self.accelerator.autocast():
            loss, _ = total_loss(model(batch), batch, self.config.losses)
        loss.backward()
        silent = [name for name, part in model.trained_parts().items() if not _has_gradient(part)]
        model.zero_grad(set_to_none=True)
        if silent:
            raise SalmaError(
                f"these parts are meant to train but get no finite, non-zero gradient: {', '.join(silent)}",
                "check the weights of the losses and what is frozen",
            )

    def _model(self, resume: Path | None) -> Salma:
        """The model of the checkpoint, or a fresh one; only the parts that train require gradients."""
        model = (
            SalmaModel.from_pretrained(resume)
            if resume is not None
            else SalmaModel.build(self.config.model, self.mix.texts())
        )
        model.requires_grad_(False)
        for part in model.trained_parts().values():
            part.requires_grad_(True)
        return model.to(self.accelerator.device).train()

    def _loader(self, model: Salma, first_pass: int) -> DataLoader[Any]:
        """Batches of this process from forward pass `first_pass` on, for ever."""
        collator = Collator(
            model.tokenizer,
            model.mllm.frame_size,
            model.mllm.tokens_per_frame,
            model.config.sam2.image_size,
            model.mllm.chat,
            model.mllm.mean,
            model.mllm.std,
        )
        order = VisitOrder(
            self.mix,
            self.config.train.batch_size,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
            first_pass=first_pass,
        )
        workers = self.config.data.workers
        return DataLoader(
            _Visits(self.mix),
            batch_sampler=order,
            collate_fn=collator,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_interrupts,
            # Without one of its own the loader draws from torch's generator, and a resumed run would go another way.
            generator=torch.Generator(),
        )

    def _restore(self, checkpoint: Path, optimizer: torch.optim.Optimizer, schedule: Any) -> int:
        state = load_trainer_state(checkpoint)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"]["cpu"])
        # A run may go on with fewer devices than it was saved with.
        torch.cuda.set_rng_state_all(state["random"]["cuda"][: torch.cuda.device_count()])
        self.bad, self.passes = int(state["bad"]), int(state["passes"])
        self.log = _Log(Counter(state["log"]["sums"]), int(state["log"]["passes"]))
        return int(state["step"])

    def _checkpoint(self, step: int) -> Path:
        return self.run.path / "checkpoints" / f"step-{step}"

    def _save(self, model: Salma, optimizer: Any, schedule: Any, step: int) -> None:
        """Write a checkpoint and drop the oldest ones."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "step": step,
            "optimizer": optimizer.optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
            "bad": self.bad,
            "passes": self.passes,
            "log": {"sums": dict(self.log.sums), "passes": self.log.passes},
        }
        save_checkpoint(
            self._checkpoint(step),
            model,
            config=self.config.model_dump(mode="json"),
            step=step,
            trainer_state=state,
        )
        LOG.info("saved step %d", step)
        self.run.prune(self.config.train.keep)

    def _record(self, step: int, figures: dict[str, float], rate: float, seconds: float) -> None:
        self.progress.advance(1, loss=figures["loss"])
        if step % self.config.train.log_every and step != self.config.train.steps:
            return
        line = {
            "step": step,
            **self.log.flush(),
            "lr": rate,
            "grad_norm": figures["grad_norm"],
            "bad": self.bad,
            "passes": self.passes,
            "log": {"sums": dict(self.log.sums), "passes": self.log.passes},
        }
        if self.accelerator.is_main_process:
            with self.run.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "seconds": round(seconds, 3)}) + "\n")

    def _ask_to_stop(self) -> None:
        self.progress.say("stopping after this step; a second Ctrl-C stops at once and loses it")
        self.stop = True


class _Visits(Dataset[Any]):
    """torch's view of a mix: keys are (epoch, visit)."""

    def __init__(self, mix: TrainingMix) -> None:
        self.mix = mix

    def __getitem__(self, key: Any) -> Any:
        return self.mix[key]


class VisitOrder(Sampler[Any]):
    """Which visits make up each forward pass of one rank; a pure function of the pass, so any can be the first."""

    def __init__(self, mix: TrainingMix, batch_size: int, *, rank: int, ranks: int, first_pass: int) -> None:
        self.mix, self.batch_size, self.rank, self.ranks, self.first_pass = (
            mix,
            batch_size,
            rank,
            ranks,
            first_pass,
        )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        place, epoch, order = self.first_pass, -1, self.mix.order(0)
        while True:
            keys = []
            start = (place * self.ranks + self.rank) * self.batch_size
            for position in range(start, start + self.batch_size):
                if position // len(self.mix) != epoch:
                    epoch = position // len(self.mix)
                    order = self.mix.order(epoch)
                keys.append((epoch, int(order[position % len(self.mix)])))
            yield keys
            place += 1


def _groups(model: Salma, train: TrainConfig) -> list[dict[str, Any]]:
    """Weight decay for matrices only, not for norms, biases, embeddings and scalars; a rate of its own for gamma."""
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    gamma = model.cma.gamma if model.cma is not None else None
    trained = [p for p in model.parameters() if p.requires_grad and p is not gamma]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in embeddings]
    others = [p for p in trained if p.ndim <= 1 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if gamma is not None:
        groups.append({"params": [gamma], "weight_decay": 0.0, "lr": train.learning_rate * train.gamma_rate})
    return groups


def _ignore_interrupts(worker: int) -> None:
    """A terminal sends Ctrl-C to the readers, too; they end when the trainer, which may still need them, does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _has_gradient(part: nn.Module) -> bool:
    gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
    return all(bool(gradient.isfinite().all()) for gradient in gradients) and any(
        bool(gradient.count_nonzero()) for gradient in gradients
    )


def _precision(wanted: str) -> str:
    if wanted == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    return "bf16" if wanted == "bf16" else "no"


@contextmanager
def _quiet(accelerator: Accelerator, model: nn.Module, quiet: bool) -> Iterator[None]:
    """Without gradient exchange between processes while accumulating."""
    if quiet:
        with accelerator.no_sync(model):
            yield
    else:
        yield


@contextmanager
def _on_signal(ask: Any) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask once; the second time they act as usual."""
    previous: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, previous[number])
        ask()

    try:
        for wanted in (signal.SIGINT, signal.SIGTERM):
            previous[wanted] = signal.signal(wanted, handle)
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        pass
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
