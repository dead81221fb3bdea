"""Does a kernel give the same bits every time? Runs each winner of a timing cache many times on poisoned outputs.

    python benchmarks/kernels/repeat.py --tiles tiles.json --times 200

A convolution adds in a fixed order, so any difference is a race. Prints the kernels that differ, if any.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from wetread.kernels import tune


def differing(problem: tune.Problem, tile: tune.Tile, times: int) -> tuple[int, int, float]:
    """Runs that differ from the first, values that differ in the worst of them, error of the first."""
    bench = tune.Bench.make(problem)
    run, written = bench.launcher(tile)
    run()
    first = written.clone()
    counts = []
    for _ in range(times):
        written.fill_(float("nan"))
        run()
        counts.append((written != first).sum())
    found = torch.stack(counts)
    return int((found > 0).sum()), int(found.max()), bench.check(first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=Path, required=True)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--best", type=int, default=2)
    parser.add_argument(
        "--only", help='words that a kernel\'s text must hold, such as "(128,) co=128 float16"'
    )
    args = parser.parse_args()
    bad = tried = 0
    for key, row in json.loads(args.tiles.read_text()).items():
        k = json.loads(key)
        problem = tune.Problem(
            k["batch"], tuple(k["size"]), tuple(k["channels"]), k["co"], k["dtype"], k["stride"]
        )
        for b in row["best"][: args.best]:
            tile = tune.tile_from(b["tile"])
            if not all(word in f"{problem} {tile}" for word in (args.only or "").split()):
                continue
            runs, values, error = differing(problem, tile, args.times)
            tried += 1
            if runs or not error < tune.TOLERANCE:
                bad += 1
                print(
                    f"{runs} of {args.times} runs differ, {values} values at worst, error {error:.2e}: "
                    f"{problem} {tile}",
                    flush=True,
                )
    print(f"{tried} kernels, {args.times} runs each: {bad} not the same every time")


if __name__ == "__main__":
    main()
