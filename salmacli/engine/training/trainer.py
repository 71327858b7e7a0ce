"""The training loop, on Accelerate: any number of devices, whole checkpoints, a stop that loses nothing."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, set_seed
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from salmacli.checkpoints.adapted import fingerprint
from salmacli.checkpoints.load import load_trainer_state
from salmacli.checkpoints.pretrained import SalmaModel
from salmacli.checkpoints.resume import model_to_train
from salmacli.checkpoints.save import Weights, save_checkpoint
from salmacli.config.schema import RunConfig
from salmacli.data.benchmarks import Benchmark
from salmacli.data.collate import Batch
from salmacli.data.training.mix import TrainingMix
from salmacli.engine.progress import Progress, Silent
from salmacli.engine.run_folder import RunFolder
from salmacli.engine.training.devices import accelerator_of, split_by_layers, whole
from salmacli.engine.training.ema import MovingAverage
from salmacli.engine.training.guards import (
    MOVED_AFTER,
    BadSamples,
    Movement,
    refuse_not_finite,
    refuse_silent,
    same_scores,
    silent_parts,
)
from salmacli.engine.training.journal import LOG, Journal
from salmacli.engine.training.loader import collator_of, loader_of
from salmacli.engine.training.optimizer import adamw, parts_table
from salmacli.engine.training.state import (
    is_deepspeed,
    model_state,
    optimizer_state,
    random_states,
    restore_deepspeed,
    restore_optimizer,
    restore_random,
    save_deepspeed,
)
from salmacli.engine.training.step import Step, counts_of
from salmacli.engine.training.stopping import Stop
from salmacli.engine.training.validation import Validation, scores
from salmacli.errors import CheckpointError, ConfigError, DataError, UsageError
from salmacli.models.losses import Counts
from salmacli.models.trained import trained_parts
from salmacli.models.unrolled import Unrolling

_NAMED = {"no": "fp32", "bf16": "bf16"}
_KEPT = {
    *("step", "precision", "optimizer", "schedule", "random", "bad", "left_out", "journal", "looks", "averages"),
}


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        step: optimiser steps made in all.
        checkpoint: the newest checkpoint.
        seconds: of this call, without earlier ones that it resumed.
        losses: mean of each loss over the last logged steps.
        ended: "finished", "interrupted" by a signal, or "no better" by train.validation.patience.
        bad: samples that could not be read.
        left_out: objects behind the end of conversations that were too long.
        best: (step, J&F) of the best validation, if there was one.
    """

    step: int
    checkpoint: Path
    seconds: float
    losses: dict[str, float]
    ended: str
    bad: int
    left_out: int = 0
    best: tuple[int, float] | None = None


@dataclass
class _Looks:
    """What validation has said.

    Attributes:
        rounds: (step, J&F).
    """

    rounds: list[tuple[int, float]] = field(default_factory=list)

    @property
    def best(self) -> tuple[int, float] | None:
        """The first of the best rounds."""
        return max(self.rounds, key=lambda one: (one[1], -one[0]), default=None)

    @property
    def without(self) -> int:
        """Rounds since the best one."""
        return len(self.rounds) - 1 - self.rounds.index(self.best) if self.best is not None else 0


class Trainer:
    """Trains one run's model on one mix.

    Args:
        config: the whole run.
        mix: what is read.
        run: where it is written.
        progress: who is told.
        benchmark: what `train.validation` looks at; needed where that is on.

    Raises:
        ConfigError: a package that the settings ask for is missing.
        UsageError: the benchmark has no public truth.
    """

    def __init__(
        self,
        config: RunConfig,
        mix: TrainingMix,
        run: RunFolder,
        progress: Progress | None = None,
        benchmark: Benchmark | None = None,
    ) -> None:
        self.config, self.mix, self.run = config, mix, run
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        self.accelerator = accelerator_of(config.train, run.path)
        self.progress: Progress = progress if progress is not None and self.accelerator.is_main_process else Silent()
        self.journal = Journal(run, self.accelerator, config)
        self.bad = BadSamples(config.data.max_bad_fraction, len(mix))
        self.left_out = 0
        self.stop = Stop(self.progress.say)
        self.looks = _Looks()
        self.validation: Validation | None = None
        if config.train.validation.every is not None and benchmark is not None:
            here = self.accelerator
            self.validation = Validation(config.train.validation, benchmark, here.process_index, here.num_processes)

    @property
    def main(self) -> bool:
        """Whether this process is the one that tells and saves."""
        return bool(self.accelerator.is_main_process)

    def fit(self, resume: Path | None = None) -> TrainingResult:
        """Train to the end, or until a signal asks to stop.

        Args:
            resume: a checkpoint folder of this run to go on from.

        Raises:
            SalmaError: a part that should learn gets no gradient or does not move, or a loss is not finite.
            DataError: more samples were unreadable than `data.max_bad_fraction` allows.
        """
        try:
            with self.journal.open():
                return self._fit(resume)
        finally:
            # Without it a worker may abort while the interpreter ends.
            self.accelerator.end_training()

    def _fit(self, resume: Path | None) -> TrainingResult:
        train, started = self.config.train, time.monotonic()
        first = self._prepare(resume)
        if self._no_better():
            raise UsageError(
                f"{self.run.path} has ended: validation got no better (train.validation.patience)",
                "start a new run, maybe from its best checkpoint as model.mllm.base",
            )
        if self.main:
            self.run.forget_after(first)
        if first == 0:
            self._check_gradients()
        movement = Movement(self.parts, self._over_all) if first < MOVED_AFTER else None
        batches = self._batches(first * train.accumulate)
        LOG.info("from step %d to %d on %s", first, train.steps, self.accelerator.device)
        self.progress.start("training", train.steps, first)
        step, saved, ended = first, first if resume is not None else -1, "finished"
        with self.stop.on_signal():
            while step < train.steps:
                drawn = self._draw(batches, step)
                if drawn is None:
                    ended = "interrupted"
                    break
                figures = self._optimise(*drawn, step)
                step += 1
                self._record(step, figures, time.monotonic() - started)
                if movement is not None and step == MOVED_AFTER:
                    movement.check(step)
                    movement = None
                better = self._validate(step)
                if step % train.save_every == 0 or step == train.steps or better:
                    self._save(step)
                    saved = step
                if better is not None and self._no_better():
                    ended = "no better"
                    break
        if saved != step:
            self._save(step)
        self.progress.finish()
        losses = self.journal.last or self.journal.flush()
        seconds = time.monotonic() - started
        bad, best = self.bad.count, self.looks.best
        return TrainingResult(step, self._folder(step), seconds, losses, ended, bad, self.left_out, best)

    def _prepare(self, resume: Path | None) -> int:
        """Build, or build and restore, everything that lasts; the steps that are done."""
        train = self.config.train
        set_seed(self.config.seed)
        state = self._state(resume) if resume is not None else None
        self.model = self._model(resume)
        self.frozen = fingerprint(self.model)
        self.model.to(self.accelerator.device).train()
        optimizer = adamw(self.model, self.config)
        self.progress.parts(parts_table(self.model, self.config))
        self.schedule = get_cosine_schedule_with_warmup(
            optimizer, round(train.warmup_fraction * train.steps), train.steps
        )
        split_by_layers(self.accelerator, self.model)
        # ZeRO-3's parameters are there only while their modules run; every batch must run them all.
        self.alike = train.sharding == "zero3"
        several = self.accelerator.num_processes > 1
        self.step = Step(self.model, self.config.losses, several=several, touch=not self.alike)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.step, optimizer)
        # Sharding has put other parameters in the places of those before.
        trained = trained_parts(self.model, self.config)
        self.parts = {name: list(part.values()) for name, part in trained.items()}
        self.ema = None
        if train.ema is not None:
            self.ema = MovingAverage({k: p for part in trained.values() for k, p in part.items()}, train.ema)
        set_seed(self.config.seed, device_specific=True)  # dropout is every process's own
        if resume is None or state is None:
            return 0
        self._restore(state)
        restore_deepspeed(self.wrapped, resume)
        return int(state["step"])

    def _state(self, resume: Path) -> dict[str, Any]:
        """All that is needed to go on, and of the same precision: bfloat16 rounds frozen weights."""
        state = load_trainer_state(resume)
        if missing := _KEPT - state.keys():
            raise CheckpointError(
                f"{resume}: its ckpt.pth lacks {', '.join(sorted(missing))}, so another version of SALMA wrote it",
                "go on with that version, or start a new run with this checkpoint as model.mllm.base",
            )
        then, now = state["precision"], self.accelerator.mixed_precision
        if then != now:
            raise ConfigError(
                f"{resume} was trained with precision {_NAMED[then]}, and train.precision = "
                f"{self.config.train.precision!r} means {_NAMED[now]} here",
                "resume on a device like the one before",
            )
        return state

    def _model(self, resume: Path | None) -> SalmaModel:
        """The model as training begins with it, or goes on."""
        config = self.config
        texts = self.mix.texts() if config.model.mllm.base is None else ()
        model = model_to_train(config, texts, resume, bf16=self.accelerator.mixed_precision == "bf16")
        if config.train.memory:
            model.unroll = Unrolling(
                config.data.prompted_frames, config.train.gradient_checkpointing, config.train.true_prompts
            )
        if config.train.gradient_checkpointing:
            model.mllm.checkpoint_activations()
        return model

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Everything but the weights."""
        here = self.accelerator
        restore_optimizer(here, self.wrapped, self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(dict(state["schedule"]))
        restore_random(state["random"], here.process_index)
        self.bad.count, self.left_out = int(state["bad"]), int(state["left_out"])
        self.journal.restore(state["journal"])
        self.looks.rounds = [(int(step), float(score)) for step, score in state["looks"]]
        if self.ema is not None:
            self.ema.restore(state["averages"])

    def _batches(self, first_pass: int) -> Iterator[Any]:
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        return iter(loader_of(self.config, self.mix, self.model, first_pass, rank=rank, ranks=ranks))

    def _draw(self, batches: Iterator[Any], step: int) -> tuple[list[Batch], Counts] | None:
        """The passes of one step and what all processes have in them together; None when one was asked to stop."""
        drawn = [next(batches) for _ in range(self.config.train.accumulate)]
        counts, bad = [counts_of(batch) for batch, _ in drawn], [clip for _, clips in drawn for clip in clips]
        own = [sum(part) for part in zip(*(vars(one).values() for one in counts), strict=True)]
        lacking = float(self.alike and not all(one.masks for one in counts))
        flags = [float(len(bad)), float(self.stop.asked), lacking, float(sum(batch.left_out for batch, _ in drawn))]
        together = torch.tensor([*own, *flags], device=self.accelerator.device)
        masks, answers, frames, dropped, asked, lacking, cut = self.accelerator.reduce(together, "sum").tolist()
        if asked:
            return None
        self.left_out += int(cut)
        self._count_bad([f"{clip.name}: {clip.reason}" for clip in bad], bool(dropped), step)
        if lacking:
            raise DataError(
                f"step {step}: a batch has no mask, and ZeRO-3 needs one in each",
                "mend what was dropped (see logs/), or take train.sharding=fsdp2",
            )
        ranks = self.accelerator.num_processes
        return [batch for batch, _ in drawn], Counts(masks / ranks, answers / ranks, frames / ranks)

    def _count_bad(self, names: Sequence[str], some: bool, step: int) -> None:
        for name in names:
            LOG.warning("dropped %s", name)
        if not some:
            return
        said = gather_object(list(names))
        for name in said:
            self.progress.say(f"dropped {name}")
        train = self.config.train
        self.bad.add(said, (step + 1) * train.accumulate * train.batch_size * self.accelerator.num_processes)

    def _optimise(self, batches: Sequence[Batch], counts: Counts, step: int) -> dict[str, float]:
        """One optimiser step."""
        train = self.config.train
        if self.model.cma is not None:
            self.model.cma.warm_up(step, train.steps)
        figures: dict[str, float] = defaultdict(float)
        for number, batch in enumerate(batches):
            with self._part(last=number == len(batches) - 1):
                values = self._backward(batch, counts, (step + 1) / train.steps)
            refuse_not_finite(values, step, self.step.suspects)
            for name, value in values.items():
                figures[name] += value
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), train.clip_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        # A loss that is no number in another process shows here, before it reaches the weights and a checkpoint.
        figures["grad_norm"] = float(norm if norm is not None else self.wrapped.get_global_grad_norm() or 0.0)
        refuse_not_finite({"the gradient": figures["grad_norm"]}, step, tuple)
        # Of what has no factor of its own: the first group may be one with a factor.
        figures["lr"] = train.learning_rate * self.schedule.get_last_lr()[0] / self.schedule.base_lrs[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(step + 1)
        return figures

    def _backward(self, batch: Batch, counts: Counts, progress: float) -> dict[str, float]:
        """One pass; its losses."""
        with self.accelerator.autocast():
            loss, parts = self.wrapped(batch.to(self.accelerator.device), counts, progress)
        # DeepSpeed divides by the passes of a step, which the counts have done.
        factor = self.config.train.accumulate if is_deepspeed(self.wrapped) else 1
        self.accelerator.backward(loss * factor)
        names = ("loss", *parts)
        return dict(zip(names, torch.stack([loss.detach(), *parts.values()]).tolist(), strict=True))

    @contextmanager
    def _part(self, last: bool) -> Iterator[None]:
        """One pass of several: processes exchange gradients, and DeepSpeed makes its step, after the last one."""
        self.accelerator.sync_gradients = last
        # DeepSpeed knows by that; it has no such context in its higher stages.
        quiet = not last and not is_deepspeed(self.wrapped)
        with self.accelerator.no_sync(self.wrapped) if quiet else nullcontext():
            yield

    def _check_gradients(self) -> None:
        """Every part meant to train must get a gradient from a batch of each set, or hours would be lost."""
        if is_deepspeed(self.wrapped):
            return  # it keeps gradients to itself; whether parts move is checked all the same
        if self.model.cma is not None:
            self.model.cma.warm_up(0, self.config.train.steps)
        silent: Sequence[str] = ()
        masks = 0
        collate = collator_of(self.model, self.config.data.max_tokens)
        for visits in self.mix.one_of_each(self.config.train.batch_size):
            batch, bad = collate([self.mix[0, visit] for visit in visits])
            if self._over_all(torch.tensor([float(len(bad) == len(visits))])):
                silent = ()
                break  # the first steps will count and name what cannot be read
            masks += len(batch.targets)
            values = self._backward(batch, counts_of(batch), 1.0)
            refuse_not_finite(values, 0, self.step.suspects)
            silent = silent_parts(self.parts, self._over_all)
            if not silent:
                break
        self.optimizer.zero_grad(set_to_none=True)
        set_seed(self.config.seed, device_specific=True)
        if silent and not masks:
            raise ConfigError(
                f"nothing in data.train has masks, so these parts would learn nothing: {', '.join(silent)}",
                "add a set with masks",
            )
        refuse_silent(silent)

    def _over_all(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values.to(self.accelerator.device), "sum").cpu()

    def _record(self, step: int, figures: dict[str, float], seconds: float) -> None:
        rate, norm = figures.pop("lr"), figures.pop("grad_norm")
        self.journal.add(figures)
        self.progress.advance(1, loss=figures["loss"])
        if step % self.config.train.log_every and step != self.config.train.steps:
            return
        line = {**self.journal.flush(), "lr": rate, "grad_norm": norm, "bad": self.bad.count, "left_out": self.left_out}
        self.journal.write(step, {**line, "seconds": round(seconds, 3)})

    def _validate(self, step: int) -> bool | None:
        """Look at J&F where it is time to; whether it is the best so far, None where nobody looked."""
        if self.validation is None or step % (self.config.train.validation.every or 1):
            return None
        with self._averaged(), whole(self.wrapped), self.accelerator.autocast():
            sums = torch.from_numpy(self.validation.sums(self.model))
        found = scores(self._over_all(sums).numpy())
        self.journal.write(step, {f"validation_{name}": value for name, value in found.items()})
        self.progress.say(f"step {step}: validation J&F {100 * found['JF']:.1f}")
        self.looks.rounds.append((step, found["JF"]))
        fault = same_scores([score for _, score in self.looks.rounds])
        if fault:
            LOG.error(fault)
            self.progress.say(fault)
        return self.looks.best == (step, found["JF"])

    def _no_better(self) -> bool:
        patience = self.config.train.validation.patience
        return patience is not None and self.looks.without >= patience

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """With the moving average in the place of the weights, where there is one."""
        with self.ema.in_place() if self.ema is not None else nullcontext():
            yield

    def _save(self, step: int) -> None:
        """Write a checkpoint and drop the oldest ones. All processes call it."""
        here = self.accelerator
        averages = self.ema.whole() if self.ema is not None else None
        weights = Weights(model_state(here, self.wrapped), averages, self.frozen)
        state = {
            "step": step,
            "precision": here.mixed_precision,
            "optimizer": optimizer_state(here, self.wrapped, self.optimizer),
            "schedule": self.schedule.state_dict(),
            "random": random_states(),
            "bad": self.bad.count,
            "left_out": self.left_out,
            "journal": self.journal.state(),
            "looks": [list(one) for one in self.looks.rounds],
            "averages": averages,
        }
        folders = save_deepspeed(self.wrapped, self._folder(step))
        if self.main:
            settings = self.config.model_dump(mode="json")
            save_checkpoint(
                self._folder(step),
                self.model,
                config=settings,
                step=step,
                trainer_state=state,
                weights=weights,
                folders=folders,
            )
            LOG.info("saved step %d", step)
            self.run.prune(self.config.train.keep, self.looks.best[0] if self.looks.best else None)
        here.wait_for_everyone()

    def _folder(self, step: int) -> Path:
        return self.run.path / "checkpoints" / f"step-{step}"
