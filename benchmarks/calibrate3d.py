"""Ranges of the U-Nets of the GPU benchmarks, observed on the CPU as `wetread build` does; needs no GPU.

    python benchmarks/calibrate3d.py FOLDER [--models mlperf nnunet] [--windows 2] [--threads 2]

Writes FOLDER/<model>.ranges, which mlperf_3dunet.py and networks.py read with --ranges FOLDER. The windows are
synthetic, of other seeds than those that are timed.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from models3d import MODELS, export, synthetic

from wetread.graph import Graph
from wetread.precision import CalibrationWindow, Ranges, observe, quantise, quantised_tensors

FIRST_SEED = 10_000


def calibrate(name: str, window: tuple[int, int, int], windows: int, threads: int) -> Ranges:
    """Ranges of the tensors that may be quantised."""
    with tempfile.TemporaryDirectory() as folder:
        graph = export(MODELS[name], Path(folder) / "model.onnx")
        seen = [
            CalibrationWindow(f"synthetic {i}", synthetic(window, FIRST_SEED + i).numpy())
            for i in range(windows)
        ]
        return observe(graph, seen, tensors=quantised_tensors(graph), threads=threads)


def quantised(graph: Graph, ranges: Path, precision: str) -> Graph:
    """The graph in 8 bits, by ranges that `main` wrote."""
    names, found = pickle.loads(ranges.read_bytes())
    wanted = quantised_tensors(graph)
    if list(wanted) != names:
        raise SystemExit(f"{ranges} was made of another graph: {wanted[:3]}… against {names[:3]}…")
    kind = "float8" if precision.startswith("float8") else "int8"
    return quantise(graph, found, kind=kind)[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=["mlperf", "nnunet"])
    parser.add_argument("--window", type=int, nargs=3, default=(128, 128, 128))
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        start = time.time()
        ranges = calibrate(name, tuple(args.window), args.windows, args.threads)
        (args.folder / f"{name}.ranges").write_bytes(pickle.dumps((list(ranges), ranges)))
        print(f"{name}: {len(list(ranges))} tensors in {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
