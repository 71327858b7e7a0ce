"""What training through SAM 2's memory brings: J&F of one tiny model, trained on with it and without, in every mode.

    python benchmarks/memory_training.py --out memory_training.json

Each seed trains the tiny preset, whose memory is never used, and goes on from there for as many steps with
`train.memory` as without: same frames, same expressions, same order. "and true masks" lets the memory see the true
masks of most prompted frames (`train.true_prompts`). Every run is `salma train` and `salma eval mevis`
as a user types them. Scores are of the held-out synthetic MeViS split; minutes are wall time of the training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from learn import salma

MODES = ("frames", "consistent", "sa2va")
FURTHER = [
    "model.cma.warmup_fraction=0",  # the attention is there already
    "data.decoded_frames=2",
    "data.choice=consecutive",
    "data.expressions=2",
    "train.learning_rate=2e-3",
]
VARIANTS = {
    "without": ["train.memory=false"],
    "with memory": ["train.memory=true"],
    "and true masks": ["train.memory=true", "train.true_prompts=0.8"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=180, help="of the training that goes on, with memory and without")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("memory-training"), help="runs; finished ones are kept")
    parser.add_argument("--out", type=Path, default=Path("memory_training.json"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    salma(options.folder, 0, ["data", "make", "--json"], fine=(0, 2, 4))
    rows = [
        row for seed in range(options.seeds) for row in compare(options.folder, seed, options.steps, options.threads)
    ]
    options.out.write_text(
        json.dumps({"settings": FURTHER, "variants": VARIANTS, "steps": options.steps, "runs": rows}, indent=2) + "\n"
    )
    print(f"{'J&F in mode':<16}" + "".join(f"{mode:>12}" for mode in MODES) + f"{'minutes':>10}")
    for variant in ("before", *VARIANTS):
        mine = [row for row in rows if row["variant"] == variant]
        scores = "".join(f"{100 * mean(row[mode]['JF'] for row in mine):12.1f}" for mode in MODES)
        print(f"{variant:<16}{scores}{mean(row['minutes'] for row in mine):10.1f}")


def compare(folder: Path, seed: int, steps: int, threads: int) -> list[dict[str, Any]]:
    """The model before, and after so many steps more with the memory and without."""
    before = run(folder, f"before-{seed}", seed, ["--cma", "--topk", "2"], threads)
    base = f"model.mllm.base={before.pop('checkpoint')}"
    rows = [{"variant": "before", **before}]
    for variant, own in VARIANTS.items():
        settings = [part for one in (base, *own, *FURTHER) for part in ("--set", one)]
        name = f"{variant.replace(' ', '-')}-{seed}"
        row = run(folder, name, seed, ["--cma", "--topk", "2", "--steps", str(steps), *settings], threads)
        rows.append({"variant": variant, **row})
    return rows


def run(folder: Path, name: str, seed: int, options: list[str], threads: int) -> dict[str, Any]:
    """Train, and evaluate in every mode, unless that was done."""
    done = folder / f"{name}.json"
    if not done.exists():
        trained = salma(folder, threads, ["train", *options, "--seed", str(seed), "--name", name, "--json"])
        row = {"seed": seed, "minutes": round(trained["seconds"] / 60, 2)}
        for mode in MODES:
            scored = salma(folder, threads, ["eval", "mevis", "--run", f"runs/{name}", "--mode", mode, "--json"])
            row[mode] = {key: round(scored["scores"][key], 4) for key in ("J", "F", "JF")}
        checkpoint = max(
            (folder / "runs" / name / "checkpoints").iterdir(), key=lambda one: int(one.name.split("-")[1])
        )
        done.write_text(json.dumps({**row, "checkpoint": str(checkpoint.resolve())}))
    return dict(json.loads(done.read_text()))


if __name__ == "__main__":
    main()
