"""What a training tells: logs of each process, one line of figures per few steps, trackers."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from salmacli.config.schema import RunConfig
from salmacli.engine.run_folder import RunFolder

LOG = logging.getLogger("salmacli.engine.training")


class Journal:
    """Keeps a run's figures.

    Args:
        run: where they are written.
        accelerator: of this process.
        config: how often, and to which trackers.
    """

    def __init__(self, run: RunFolder, accelerator: Accelerator, config: RunConfig) -> None:
        self.run, self.accelerator, self.config = run, accelerator, config
        self.sums: Counter[str] = Counter()
        self.steps = 0
        self.last: dict[str, float] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Write what happens to this process, its end included, into the run's logs/rank<N>.log; start trackers."""
        path = self.run.path / "logs" / f"rank{self.accelerator.process_index}.log"
        path.parent.mkdir(exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)
        try:
            if self.config.train.trackers:
                names = {"wandb": {"name": self.run.name, "id": self.run.name, "resume": "allow"}}
                names["trackio"] = {"name": self.run.name, "resume": "allow"}
                kept = {name: names[name] for name in self.config.train.trackers if name in names}
                self.accelerator.init_trackers("salma", flat(self.config.model_dump(mode="json")), kept)
            yield
        except BaseException as error:
            LOG.error("ended by %s: %s", type(error).__name__, error)
            raise
        finally:
            LOG.removeHandler(handler)
            handler.close()

    def add(self, values: Mapping[str, float]) -> None:
        """Take in one step's figures of this process."""
        self.sums.update(values)
        self.steps += 1

    def flush(self) -> dict[str, float]:
        """Means since the last call, over all processes, which all call it."""
        own = {name: value / max(self.steps, 1) for name, value in self.sums.items()}
        said = gather_object([own])  # a process whose batches have no mask has no loss of masks
        names = dict.fromkeys(name for one in said for name in one)
        self.last = {name: sum(one.get(name, 0.0) for one in said) / len(said) for name in names}
        self.sums, self.steps = Counter(), 0
        return self.last

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and the same to the trackers."""
        if self.accelerator.is_main_process:
            with self.run.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **figures}) + "\n")
        if self.config.train.trackers:
            self.accelerator.log({name: value for name, value in figures.items() if value is not None}, step=step)

    def state(self) -> dict[str, Any]:
        """What has not been written yet."""
        return {"sums": dict(self.sums), "steps": self.steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo `state`."""
        self.sums, self.steps = Counter(state["sums"]), int(state["steps"])


def flat(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Settings by their dotted names, as numbers and texts."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{path}{key}.")
        else:
            found[f"{path}{key}"] = value if isinstance(value, (int, float, str)) else str(value)
    return found
