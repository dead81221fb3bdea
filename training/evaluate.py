"""Sensitivity, false positives and Dice on held-out phantoms, for the network and for the baseline.

``python training/evaluate.py --scans 50 --jobs 2 --json held-out.json --table held-out.md`` measures the embedded
package through wetread itself: its recipe, windows, lungs, thresholds and findings. With ``--model FILE`` a bare ONNX
file runs in the training's own sliding window instead, for a look at a network that is no package yet.
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
from scoring import Candidate, Scan, at_one_false_positive, candidates, record, summary, table
from tune import make
from windows import openvino_run, predict, wetread_read

FIRST_SEED = 1_000_000
"""Held out: training uses seeds under 900,000, tuning 900,000 and up."""

_worker: dict[str, Any] = {}
"""What a worker process keeps between scans: the options, and a reader or a bare network."""


def _start(options: argparse.Namespace, threads: int) -> None:
    _worker["options"] = options
    if options.model:
        _worker["run"] = openvino_run(options.model, threads)
    else:
        _worker["read"] = wetread_read(options.package, threads)


def _found(phantom: Any) -> list[Candidate]:
    """Findings of the package, through wetread, or of the bare network."""
    options: argparse.Namespace = _worker["options"]
    if "read" in _worker:
        marks, chance = _worker["read"](phantom)
        return candidates(marks, chance, phantom, options.connectivity)
    chance = predict(phantom.hu, _worker["run"])
    found = candidates(chance > options.threshold, chance, phantom, options.connectivity)
    return [c for c in found if c.volume_mm3 >= options.smallest_mm3]


def _scan(seed: int) -> tuple[Scan, dict[str, Scan]]:
    """One held-out scan: the findings, and the baseline's for each of its settings."""
    phantom = make(seed)
    simple = {} if _worker["options"].no_baseline else baseline.find(phantom)
    return record(seed, phantom, _found(phantom)), {k: record(seed, phantom, v) for k, v in simple.items()}


def report(scans: list[Scan], simple: dict[str, list[Scan]]) -> dict[str, Any]:
    """Summaries of the network at its recipe, and of the best baseline at one false positive a scan."""
    columns = {"network": summary(scans)}
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
    parser.add_argument(
        "--package", default="lung-nodule", help="a package: its folder, or an embedded one's name"
    )
    parser.add_argument("--model", type=Path, help="an ONNX file, run without wetread")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--threshold", type=float, default=0.7, help="with --model; a package has its own")
    parser.add_argument("--smallest-mm3", type=float, default=25.0, help="with --model")
    parser.add_argument("--connectivity", type=int, choices=(6, 18, 26), default=26)
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
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
    columns = report(scans, simple)
    text = table(columns)
    print(text)
    if options.table:
        options.table.write_text(text + "\n")
    if options.json:
        facts = {
            "seeds": [seeds[0], seeds[-1]],
            "measured": f"bare network {options.model}" if options.model else f"package {options.package}",
            **(
                {"threshold": options.threshold, "smallest_mm3": options.smallest_mm3}
                if options.model
                else {}
            ),
        }
        raw = [{"seed": s.seed, "nodules": s.nodules, "found": [vars(c) for c in s.found]} for s in scans]
        options.json.write_text(
            json.dumps({**facts, "results": columns, "scans": raw}, indent=1, default=float)
        )


if __name__ == "__main__":
    main()
