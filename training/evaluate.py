"""Sensitivity, false positives and Dice on held-out phantoms, for the network and for the baseline.

``python training/evaluate.py --scans 50 --jobs 2 --model model.onnx --json held-out.json --table held-out.md``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import baseline
from scoring import Scan, at_one_false_positive, candidates, record, summary, table
from tune import make
from windows import Run, openvino_run, predict

FIRST_SEED = 1_000_000
"""Held out: training uses seeds under 900,000, tuning 900,000 and up."""

_run: Run | None = None
_options: argparse.Namespace


def _start(options: argparse.Namespace, threads: int) -> None:
    global _run, _options
    _options, _run = options, openvino_run(options.model, threads)


def _scan(seed: int) -> tuple[Scan, dict[str, Scan]]:
    """One held-out scan: the network's findings, and the baseline's for each of its settings."""
    assert _run is not None
    phantom = make(seed)
    chance = predict(phantom.hu, _run)
    found = candidates(chance > _options.threshold, chance, phantom, _options.connectivity)
    simple = {} if _options.no_baseline else baseline.find(phantom)
    return record(seed, phantom, found), {k: record(seed, phantom, v) for k, v in simple.items()}


def report(options: argparse.Namespace, scans: list[Scan], simple: dict[str, list[Scan]]) -> dict[str, Any]:
    """Summaries of the network at its recipe, at one false positive a scan, and of the best baseline there."""
    kept = [
        Scan(s.seed, s.nodules, [c for c in s.found if c.volume_mm3 >= options.smallest_mm3]) for s in scans
    ]
    columns = {"network": summary(kept), "network at 1 FP/scan": at_one_false_positive(kept)}
    if simple:
        curves = {name: at_one_false_positive(v) for name, v in simple.items()}
        best = max(curves, key=lambda name: float(curves[name]["classes"]["all"]["sensitivity"] or 0))
        columns["baseline at 1 FP/scan"] = {**curves[best], "setting": best}
    return columns


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--model", type=Path, help="an ONNX file")
    parser.add_argument("--package", type=Path, help="a package folder, whose model.onnx is used")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--smallest-mm3", type=float, default=15.0)
    parser.add_argument("--connectivity", type=int, choices=(6, 18, 26), default=26)
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    if options.package:
        options.model = next(iter(sorted(options.package.rglob("*.onnx"))))
    if not options.model:
        parser.error("give --model FILE or --package FOLDER")
    began, scans, simple = time.time(), [], {}
    seeds = range(options.first_seed, options.first_seed + options.scans)
    threads = max(1, mp.cpu_count() // options.jobs)
    with mp.get_context("spawn").Pool(options.jobs, _start, (options, threads)) as pool:
        for scan, others in pool.imap_unordered(_scan, seeds):
            scans.append(scan)
            for name, other in others.items():
                simple.setdefault(name, []).append(other)
            print(
                f"{len(scans)} of {options.scans} scans, {time.time() - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    scans.sort(key=lambda s: s.seed)
    columns = report(options, scans, simple)
    text = table(columns)
    print(text)
    if options.table:
        options.table.write_text(text + "\n")
    if options.json:
        facts = {
            "seeds": [seeds[0], seeds[-1]],
            "threshold": options.threshold,
            "smallest_mm3": options.smallest_mm3,
        }
        raw = [{"seed": s.seed, "nodules": s.nodules, "found": [vars(c) for c in s.found]} for s in scans]
        options.json.write_text(
            json.dumps({**facts, "results": columns, "scans": raw}, indent=1, default=float)
        )


if __name__ == "__main__":
    main()
