"""Chooses probability threshold and smallest size on tuning phantoms (seeds apart from training's and test's).

``python training/tune.py --weights runs/2/weights.pt --scans 24 --json tune.json``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from scoring import Scan, candidates, record, summary, table

FIRST_SEED = 900_000
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SIZES_MM3 = (0.0, 15.0, 25.0, 40.0)


def make(seed: int, on_gpu: bool = False) -> Any:
    """A tuning or test phantom: up to 200 × 256 × 320 mm at 1 mm, 1 to 6 nodules; 1 in 8 has none."""
    xp: Any = np
    if on_gpu:
        import cupy as xp  # type: ignore[no-redef,import-not-found]
    from wetread.bench.phantom import make_phantom

    rng = np.random.default_rng([seed, 7])
    shape = (int(rng.integers(160, 201)), int(rng.integers(200, 257)), int(rng.integers(260, 321)))
    count = (0, 0) if rng.random() < 0.125 else (1, 6)
    return make_phantom(seed, shape, (1.0, 1.0, 1.0), count, xp=xp)


def _score(job: tuple[int, Any, Any]) -> dict[float, Scan]:
    seed, phantom, chance = job
    chance = chance.astype(np.float32)
    return {t: record(seed, phantom, candidates(chance > t, chance, phantom)) for t in THRESHOLDS}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True)
    parser.add_argument("--scans", type=int, default=24)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--json")
    options = parser.parse_args()
    began = time.time()
    with mp.get_context("fork").Pool(options.jobs) as pool:
        from dataclasses import replace

        from windows import predict, torch_run

        run = torch_run(Path(options.weights))
        waiting = []
        for seed in range(options.first_seed, options.first_seed + options.scans):
            if time.time() - began > options.seconds:
                break
            phantom = make(seed, on_gpu=True)
            phantom = replace(phantom, hu=phantom.hu.get(), truth=phantom.truth.get())
            chance = predict(phantom.hu, run, batch=16).astype(np.float16)
            waiting.append(pool.apply_async(_score, ((seed, phantom, chance),)))
        scans = [w.get() for w in waiting]
    print(f"{len(scans)} scans, {time.time() - began:.0f} s")
    for threshold in THRESHOLDS:
        for size in SIZES_MM3:
            s = summary([x[threshold] for x in scans], size)
            c = s["classes"]
            print(
                f"p > {threshold} size >= {size:4.0f}: FP {s['false_positives_per_scan']:.2f} "
                f"sens >=6 {c['>= 6 mm']['sensitivity']:.3f} all {c['all']['sensitivity']:.3f} "
                f"dice {c['all']['dice'] or 0:.3f}"
            )
    chosen = [x[0.5] for x in scans]
    print(table({"p > 0.5": summary(chosen, 15.0)}))
    for scan in chosen:
        for c in scan.found:
            if c.label == 0 and c.volume_mm3 >= 15:
                print("FP", scan.seed, [round(v) for v in c.centre], f"{c.volume_mm3:.0f} mm3 {c.score:.2f}")
        hit = {c.label for c in scan.found}
        for n in scan.nodules:
            if n["label"] not in hit:
                at = [round(v) for v in n["centre_voxel"]]
                print("MISS", scan.seed, at, f"{n['diameter_mm']:.1f}", n["kind"], n["attachment"])
    if options.json:
        Path(options.json).write_text(
            json.dumps({str(t): summary([x[t] for x in scans], 15.0) for t in THRESHOLDS}, indent=1)
        )


if __name__ == "__main__":
    main()
