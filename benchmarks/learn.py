"""What the main job learns: J&F on the held-out synthetic MeViS split, with and without attention, over seeds.

    python benchmarks/learn.py --seeds 3 --out learn.json

Every run is `salma train` and `salma eval mevis` as a user types them, in a folder of its own. Scores are of the
held-out split, whose colours and shapes are never paired in training; "untrained" is the same model after one step of
next to nothing. Minutes are wall time of the training; with --parallel above 1 they say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

VARIANTS = {
    "cma": ["--cma", "--topk", "2"],
    "no-cma": ["--no-cma"],
    "untrained": ["--cma", "--topk", "2", "--steps", "1", "--set", "train.learning_rate=1e-12"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--folder", type=Path, default=Path("learn"), help="where the runs lie; finished ones are kept")
    parser.add_argument("--out", type=Path, default=Path("learn.json"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    salma(options.folder, 0, ["data", "make", "--json"], fine=(0, 2, 4))  # before any run, so that none waits for it
    jobs = [(variant, seed) for seed in range(options.seeds) for variant in options.variants]
    threads = max(1, (os.cpu_count() or 1) // options.parallel)
    with ThreadPoolExecutor(options.parallel) as pool:
        rows = list(pool.map(lambda job: measure(options.folder, *job, threads), jobs))
    summary = {
        variant: {
            key: median(row[key] for row in rows if row["variant"] == variant)
            for key in rows[0]
            if key not in ("variant", "seed")
        }
        for variant in options.variants
    }
    options.out.write_text(json.dumps({"median": summary, "runs": rows, "parallel": options.parallel}, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def measure(folder: Path, variant: str, seed: int, threads: int) -> dict[str, Any]:
    """Train and evaluate one variant with one seed, unless that was done."""
    name = f"{variant}-{seed}"
    done = folder / f"{name}.json"
    if not done.exists():
        trained = salma(folder, threads, ["train", *VARIANTS[variant], "--seed", str(seed), "--name", name, "--json"])
        scored = salma(folder, threads, ["eval", "mevis", "--run", f"runs/{name}", "--json"])
        groups = scored["groups"]
        row = {
            "variant": variant,
            "seed": seed,
            "minutes": round(trained["seconds"] / 60, 2),
            **{key: round(scored["scores"][key], 4) for key in ("J", "F", "JF")},
            "with distractor": round(groups["distractor"]["yes"]["JF"], 4),
            "without distractor": round(groups["distractor"]["no"]["JF"], 4),
            **{name: round(group["JF"], 4) for name, group in groups["category"].items()},
        }
        done.write_text(json.dumps(row))
    return dict(json.loads(done.read_text()))


def salma(folder: Path, threads: int, arguments: list[str], fine: tuple[int, ...] = (0,)) -> Any:
    """Run one command; its JSON."""
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    command = [sys.executable, "-m", "salmacli", *arguments]
    ended = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if ended.returncode not in fine:
        raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}")
    return json.loads(ended.stdout) if ended.stdout.strip() else None


if __name__ == "__main__":
    main()
