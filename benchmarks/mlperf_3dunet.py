"""MLPerf's 3D-UNet as in the Offline scenario: from a volume in device memory to its label map, all 43 cases.

    python benchmarks/calibrate3d.py RANGES
    python benchmarks/mlperf_3dunet.py --cases CASES.csv --ranges RANGES --out DIR [--timings kernels.json]
    python benchmarks/mlperf_3dunet.py --report DIR/mlperf_3dunet.json --out docs/benchmarks

Windows of 128³, half of it from one to the next, blended by the cube root of the outer product of Gaussians
(σ = 16), argmax. What is timed: cutting windows, network, stitching, argmax; a sample is one case and all weigh the
same. Every window of every case is computed each time, nothing is kept from one sample to the next, and each case is a
volume of its own. PyTorch's stacks run through the same cutting and stitching, over some cases, and their time is
scaled by windows. Weights are random (MLPerf's cannot be had), so the Dice here says how far labels of a network
without training move, which lie near ties; docs/benchmarks/cuda-accuracy.md has trained networks.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu import (
    CUDA,
    DEVICE,
    PEAK,
    STACKS,
    Journal,
    Stack,
    allocated,
    best_compile,
    clear,
    dice,
    first,
    interleaved,
    once_ms,
    peak_of,
    quartiles,
    relative_error,
    stack,
    warm_compile,
    work_of,
)
from mlperf_report import report
from models3d import MLPERF, MODELS, Shape3, synthetic
from wetread_gpu import Built, Maker, TorchNetwork, Wish, show_steps, step_table

from wetread.engines.cuda.plan import program_to_json
from wetread.engines.cuda.volume import EvenAxis, VolumePlan, VolumeRunner, gaussian_profile

CLASSES = 3
SIGMA = 0.125
SUBSET = ("case_00160", "case_00041", "case_00065", "case_00000", "case_00006", "case_00034")
"""Cases that slow stacks run: 8, 16, 32, 50, 64 and 100 windows."""
JUDGED = ("case_00160", "case_00041")
"""Cases whose labels are compared with float32's."""


def read_cases(path: Path | None, size: int) -> dict[str, tuple[Shape3, int]]:
    """Shape of each case, and its windows; without a file three small ones, to see that it runs."""
    if path is None:
        small, long = ((size, size, size), 1), ((size, size, size * 3 // 2), 2)
        return {"case_00160": small, "case_00041": long, "case_00065": long}
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {
        r["case"]: ((int(r["depth"]), int(r["height"]), int(r["width"])), int(r["windows"])) for r in rows
    }


class Cases:
    """The volumes, in device memory, and how each is read.

    Args:
        shapes: of the cases, with the windows that MLPerf counts.
        window: voxels of a window.
    """

    def __init__(self, shapes: dict[str, tuple[Shape3, int]], window: Shape3) -> None:
        self.shapes = shapes
        self.window = window
        self.volumes = {
            name: synthetic(shape, number, DEVICE) for number, (name, (shape, _)) in enumerate(shapes.items())
        }
        self.labels = {name: torch.empty(shape, dtype=torch.uint8, device=DEVICE)
                       for name, (shape, _) in shapes.items()}  # fmt: skip
        self.profiles = [gaussian_profile(n, SIGMA * n, 1 / 3) for n in window]

    def plan(self, name: str, times: dict[int, float]) -> VolumePlan:
        """Which windows of a case run together, given the measured times of batches."""
        shape, windows = self.shapes[name]
        axes = [EvenAxis(n, len(p) // 2, p) for n, p in zip(shape, self.profiles, strict=True)]
        plan = VolumePlan(axes, times, DEVICE)
        if plan.windows != windows:
            raise SystemExit(f"{name}: {plan.windows} windows, MLPerf counts {windows}")
        return plan

    def windows(self, count: int) -> torch.Tensor:
        """Windows of the first case, from its start, its middle and its end in turn: [count, 1, d, h, w]."""
        found = []
        for number, volume in enumerate(list(self.volumes.values())[:count]):
            at = [(n - w) * (number % 3) // 2 for n, w in zip(volume.shape[1:], self.window, strict=True)]
            found.append(
                volume[(slice(None), *(slice(a, a + w) for a, w in zip(at, self.window, strict=True)))]
            )
        return torch.stack(found)


class Offline:
    """A network over cases: labels written, time of a pass."""

    def __init__(self, network: Any, cases: Cases, names: list[str], times: dict[int, float]) -> None:
        self.runner = VolumeRunner(network)
        self.cases, self.names = cases, names
        self.plans = {name: cases.plan(name, times) for name in names}
        self.windows = sum(plan.windows for plan in self.plans.values())
        self.one(
            max(names, key=lambda name: self.plans[name].slots)
        )  # the ring has its size, kernels are compiled

    def one(self, name: str) -> None:
        """One sample."""
        self.runner.run(self.cases.volumes[name], self.plans[name], labels=self.cases.labels[name])

    def everything(self) -> None:
        """All samples, one after the other."""
        for name in self.names:
            self.one(name)

    def seconds(self) -> float:
        """Time of a pass; the outputs were finite."""
        s = once_ms(self.everything) / 1e3
        self.runner.check()
        return s


def reference(window: Shape3) -> Stack:
    """The network in float32, without TF32."""
    module = MLPERF.make().to(DEVICE)

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            return first(module(x.float()))

    return Stack("eager float32", run, keep=module)


class Benchmark:
    """The whole run; rows are written as they are measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.window: Shape3 = tuple(args.window)
        self.journal = Journal(args.out / "mlperf_3dunet.json", window=list(self.window), classes=CLASSES)
        self.flop = work_of(MLPERF, self.window)
        self.cases = Cases(read_cases(args.cases, self.window[0]), self.window)
        self.mean_windows = sum(w for _, w in self.cases.shapes.values()) / len(self.cases.shapes)
        self.built: dict[str, Built] = {}
        self.stacks: dict[str, dict[int, Stack]] = {}
        self.offline: dict[str, Offline] = {}
        self.latency: dict[tuple[str, int], dict[str, float]] = {}
        self.errors: dict[str, float] = {}
        self.dice: dict[str, float] = {}
        names = list(self.cases.shapes)
        self.journal.note("gflop_per_window", self.flop / 1e9)
        self.journal.note("cases", {"count": len(names), "mean_windows": self.mean_windows})

    def wish(self, precision: str, batch: int) -> Wish:
        """One of wetread's programs."""
        return Wish(MLPERF.title, MLPERF, self.window, precision, batch)

    def make(self) -> None:
        """Plans of wetread and PyTorch's stacks, ready to run."""
        for precision in self.args.precisions:
            with self.journal.guarded(f"wetread {precision}"):
                made = self.maker.build([self.wish(precision, batch) for batch in self.args.batches])
                made.measure()
                self.built[f"wetread {precision}"] = made
                self.journal.note(f"ms by batch, {precision}", made.times)
                print(
                    precision, {b: round(t / b, 4) for b, t in made.times.items()}, "ms a window", flush=True
                )
        for name in self.args.stacks:
            with self.journal.guarded(name):
                self.stacks[name] = {}
                for batch in self.args.stack_batches:
                    x = self.cases.windows(1).expand(batch, -1, -1, -1, -1).contiguous()
                    one = name == "torch.compile" and batch == 1
                    self.stacks[name][batch] = best_compile(MLPERF, x) if one else stack(name, MLPERF, x)

    def steps(self) -> None:
        """Each step of the plans alone, beside its floor, and the plans themselves."""
        tables = {}
        for name, made in self.built.items():
            for batch in made.plans:
                with self.journal.guarded(f"steps of {name}, {batch} at once"):
                    rows = step_table(made, batch)
                    tables[f"{name}, {batch}"] = rows
                    show_steps(f"{name}, {batch} at once", rows, 8.0)
                    self.journal.note("steps", tables)
                if self.args.plans:
                    path = self.args.plans / f"mlperf-{made.plans[batch].program.precision}-b{batch}.json"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(
                        json.dumps(program_to_json(made.plans[batch].program), separators=(",", ":"))
                    )

    def accuracy(self) -> None:
        """Logits of windows and labels of whole cases against eager float32."""
        exact = reference(self.window)
        x = self.cases.windows(3)
        wanted = torch.cat([exact.run(one[None]) for one in x])
        runs: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {n: m.run for n, m in self.built.items()}
        runs |= {n: s[1].run for n, s in self.stacks.items() if 1 in s}
        for name, run in runs.items():
            given = x if name in self.built or name == "eager autocast" else x.half()
            found = torch.cat([run(one[None]).clone().float() for one in given])
            self.errors[name] = relative_error(found, wanted)
            print(f"{name}: relative L2 {self.errors[name]:.2e}", flush=True)
        judged = [name for name in JUDGED if name in self.cases.shapes]
        kept = Offline(TorchNetwork({1: exact}, self.window, CLASSES, DEVICE), self.cases, judged, {1: 1.0})
        kept.everything()
        masks = {name: self.cases.labels[name].clone() for name in judged}
        for name, made in self.built.items():
            with self.journal.guarded(f"{name}, labels"):
                offline = Offline(made.network, self.cases, judged, made.times)
                for label in judged:
                    self.cases.labels[label].fill_(255)
                offline.everything()
                offline.runner.check()
                self.dice[name] = min(dice(masks[n] > 0, self.cases.labels[n] > 0) for n in judged)
                print(f"{name}: foreground Dice {self.dice[name]:.5f}", flush=True)
        del exact, kept
        clear()

    def latencies(self) -> None:
        """Windows alone, variants in turn."""
        runs: dict[tuple[str, int], Callable[[], Any]] = {}
        for name, stacks in self.stacks.items():
            for batch, made in stacks.items():
                x = self.cases.windows(1).expand(batch, -1, -1, -1, -1).contiguous()
                x = x if name == "eager autocast" else x.half()
                runs[name, batch] = lambda m=made, x=x: m.run(x)
        for name, built in self.built.items():
            for batch in built.network.batches:
                built.network.ready(batch)
                runs[name, batch] = lambda m=built, b=batch: m.network.launch(b)
        named = {f"{name} {batch}": run for (name, batch), run in runs.items()}
        times = interleaved(named, self.args.rounds, 3 if CUDA else 0)
        self.latency = {key: times[f"{key[0]} {key[1]}"] for key in runs}
        for name, built in self.built.items():
            built.times = {b: self.latency[name, b]["median"] for b in built.network.batches}

    def passes(self) -> None:
        """All cases, wetread's precisions in turn; PyTorch's stacks once over some."""
        everything = list(self.cases.shapes)
        for name, made in self.built.items():
            with self.journal.guarded(f"{name}, ring"):
                base = allocated()
                self.offline[name] = Offline(made.network, self.cases, everything, made.times)
                made.peak_bytes = max(made.peak_bytes, peak_of(lambda o=self.offline[name]: o.one(o.names[0]), base)
                                      + made.context_bytes + made.store.bytes)  # fmt: skip
                self.offline[name].everything()
        seconds: dict[str, list[float]] = {name: [] for name in self.offline}
        for _ in range(self.args.passes):
            for name, offline in list(self.offline.items()):
                with self.journal.guarded(f"{name}, all cases", quiet=True):
                    seconds[name].append(offline.seconds())
        for name, values in seconds.items():
            if values:
                self.row(name, quartiles(values), self.offline[name].windows)
        some = [name for name in SUBSET if name in self.cases.shapes]
        for name, stacks in self.stacks.items():
            with self.journal.guarded(f"{name} over {len(some)} cases"):
                times = {b: self.latency[name, b]["median"] for b in stacks}
                best = min(times, key=lambda b: times[b] / b)
                network = TorchNetwork({best: stacks[best]}, self.window, CLASSES, DEVICE)
                offline = Offline(network, self.cases, some, {best: 1.0})
                self.row(
                    name, quartiles([offline.seconds() for _ in range(2 if CUDA else 1)]), offline.windows
                )

    def row(self, name: str, seconds: dict[str, float], windows: int) -> None:
        """One line of the table."""
        ours = name in self.built
        precision = self.built[name].plans[self.args.batches[0]].program.precision if ours else STACKS[name]
        scale = len(self.cases.shapes) * self.mean_windows / windows
        per_window = {b: t["median"] / b for (n, b), t in self.latency.items() if n == name}
        best = min(per_window, key=lambda b: per_window[b])
        rate = self.flop * windows / seconds["median"]
        sizes = [b.size for p in self.offline[name].plans.values() for b in p.batches] if ours else [best]
        self.journal.add(
            engine="wetread" if ours else name, precision=precision,
            samples_per_s=len(self.cases.shapes) / (seconds["median"] * scale),
            samples_per_s_quartiles=[len(self.cases.shapes) / (seconds[q] * scale) for q in ("q3", "q1")],
            ms_per_window=seconds["median"] * 1e3 / windows, window_latency_ms=self.latency[name, 1]["median"],
            network_ms_per_window=per_window[best], network_ms_by_batch=per_window,
            tflops=rate / 1e12, share_of_peak=rate / PEAK[precision], windows=windows,
            extrapolated=scale > 1.001, batches=sorted(set(sizes), reverse=True),
            peak_bytes=self.built[name].peak_bytes if ours else self.stacks[name][best].peak_bytes,
            window_peak_bytes=self.built[name].plans[1].bytes + self.built[name].store.bytes
            if ours and 1 in self.built[name].plans else self.stacks[name][1].peak_bytes if not ours else None,
            ring_bytes=self.offline[name].runner.bytes if ours else None,
            relative_l2=self.errors.get(name), foreground_dice=self.dice.get(name),
            note="" if ours else self.stacks[name][1].note,
        )  # fmt: skip

    def run(self) -> None:
        """Everything, in the order of what must not be lost."""
        jobs = [(MLPERF.name, self.window, b, c) for b in self.args.stack_batches for c in (True, False)
                if "torch.compile" in self.args.stacks and (b == 1 or c)]  # fmt: skip
        wait = warm_compile(jobs)
        with tempfile.TemporaryDirectory() as folder:
            self.maker = Maker(Path(folder), self.args.ranges, self.args.timings, self.args.hints)
            wishes = [self.wish(p, b) for p in self.args.precisions for b in self.args.batches]
            self.maker.lower(wishes, self.journal)
            self.maker.compile()
            self.make_after(wait)
        with self.journal.guarded("accuracy"):
            self.accuracy()
        with self.journal.guarded("windows"):
            self.latencies()
        with self.journal.guarded("passes"):
            self.passes()
        if self.args.steps:
            self.steps()

    def make_after(self, wait: Callable[[], list[str]]) -> None:
        """Waits for PyTorch's compilers, so that nothing is timed beside them."""
        start = time.time()
        for line in wait():
            print(line, flush=True)
        print(f"[{time.time() - start:6.1f} s] PyTorch's compilers", flush=True)
        self.make()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, help="mlperf_3dunet_cases.csv")
    parser.add_argument("--ranges", type=Path, help="folder that calibrate3d.py wrote")
    parser.add_argument("--timings", type=Path, help="the tuner's cache of times")
    parser.add_argument("--hints", type=Path, help="such a file of an earlier version: what to try")
    parser.add_argument("--plans", type=Path, help="where the plans are kept as JSON")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precisions", nargs="*", default=["float16", "int8", "float8"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--stacks", nargs="*", default=list(STACKS))
    parser.add_argument("--stack-batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--window", type=int, nargs=3, default=(128, 128, 128))
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", action="store_true", help="times each step alone as well")
    parser.add_argument("--report", type=Path, help="only writes the page from this JSON")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.report:
        report(args.report, args.out)
        return
    torch.backends.cudnn.benchmark = True
    assert MLPERF is MODELS["mlperf"]
    Benchmark(args).run()


if __name__ == "__main__":
    main()
