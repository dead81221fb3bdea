"""Tunes the convolutions of nnU-Net's 3D U-Net on the device and prints each beside its floor.

    python benchmarks/kernels/layers.py --size 128 128 64 --types float16 int8 --out "$OUT"

Compiles the candidates in parallel first, then times them one after the other; writes tiles.json (the timing
cache) and layers.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from wetread.kernels import tune

FEATURES = (32, 64, 128, 256, 320, 320)


def problems(size: tuple[int, int, int], dtype: str, batch: int = 1) -> list[tune.Problem]:
    """Every distinct convolution of the network but the first."""
    out = []
    levels = [tuple(s >> i for s in size) for i in range(len(FEATURES))]
    for i, f in enumerate(FEATURES):
        if i:
            out.append(tune.Problem(batch, levels[i - 1], (FEATURES[i - 1],), f, dtype, stride=2))
        out.append(tune.Problem(batch, levels[i], (f,), f, dtype))
        if i < len(FEATURES) - 1:
            out.append(tune.Problem(batch, levels[i], (f, f), f, dtype))
    return out


def shortlist(problem: tune.Problem, path: Path | None, keep: int = 4) -> list:
    """All candidates, or the best of an earlier run (whatever kernels it had) and march."""
    every = tune.candidates(problem)
    if path is None:
        return every
    wanted = [list(problem.channels), problem.co, problem.dtype, problem.stride]
    same, like = [], []
    for key, row in json.loads(path.read_text()).items():
        k = json.loads(key)
        if [k["channels"], k["co"], k["dtype"], k["stride"]] == wanted:
            best = [tune.tile_from(b["tile"]) for b in row["best"][:keep]]
            (same if k["size"] == list(problem.size) else like).extend(best)
    if same or like:
        return list(dict.fromkeys((same or like) + [t for t in every if t.family == "march"]))
    return every


def warm(jobs: list, processes: int) -> None:
    chunks = [jobs[i::processes] for i in range(processes)]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=tune.compile_all, args=(sorted(c, key=str),)) for c in chunks if c]
    for w in workers:
        w.start()
    for w in workers:
        w.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(128, 128, 64))
    parser.add_argument("--types", nargs="+", default=["float16", "int8"])
    parser.add_argument("--among", type=Path, help="tiles.json of an earlier run: only its best, and march")
    parser.add_argument("--without", nargs="*", default=[], help="families to leave out")
    parser.add_argument("--processes", type=int, default=14)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    start = time.time()
    todo = [p for t in args.types for p in problems(tuple(args.size), t)]
    cache = tune.Cache(args.out / "tiles.json")
    todo = [p for p in todo if cache.get(p) is None]
    choice = {p: [t for t in shortlist(p, args.among) if t.family not in args.without] for p in todo}
    jobs = [(p, t) for p in todo for t in choice[p]]
    print(f"{len(todo)} problems, {len(jobs)} candidates", flush=True)
    warm(jobs, args.processes)
    print(f"compiled after {time.time() - start:.0f} s", flush=True)
    table = []
    for p in todo:
        rows = tune.tune(p, choice[p])
        if not rows:
            print("none is correct for", p)
            continue
        cache.put(p, rows)
        best, t = rows[0], rows[0]["tile"]
        table.append({"problem": str(p), "floor_ms": p.floor_s() * 1e3, **best, "others": rows[1:8]})
        (args.out / "layers.json").write_text(json.dumps(table, indent=1))
        name = "+".join(map(str, p.channels))
        print(f"{p.dtype:8} {name:>8}→{p.co:<4} s{p.stride} {'×'.join(map(str, p.size)):12} {best['ms'] * 1e3:7.1f} µs "
              f"floor {p.floor_s() * 1e6:6.1f}  {p.flop / best['ms'] / 1e9:6.0f} TFLOP/s  {t['family']} {t['shape']} "
              f"bn{t['bn']} bk{t['bk']} w{t['warps']} s{t['stages']} k{t['splits']}", flush=True)  # fmt: skip
    print(f"done after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
