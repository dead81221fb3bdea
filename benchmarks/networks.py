"""Networks of several kinds on one GPU: wetread beside eager autocast and torch.compile, window by window, in one run.

    python benchmarks/calibrate3d.py RANGES --models nnunet
    python benchmarks/networks.py --ranges RANGES --out DIR [--models nnunet swinunetr …] [--timings kernels.json]
    python benchmarks/networks.py --report DIR/cuda-networks.json --out docs/benchmarks

torch.compile: float16, reduce-overhead (CUDA graphs), in the faster of two memory formats. Variants run in turn, from
inputs on the device to outputs on the device. With --check no stack of PyTorch's is run: every network is made and
compared with eager float32, and its steps are printed beside their floors.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu import (
    CUDA,
    DEVICE,
    PEAK,
    Journal,
    Stack,
    best_compile,
    clear,
    first,
    interleaved,
    relative_error,
    stack,
    warm_compile,
    work_of,
)
from models3d import MODELS, Model, Shape3, synthetic
from networks_report import report
from wetread_gpu import Built, Maker, Wish, show_steps, step_table


@dataclass(frozen=True)
class Row:
    """A network and a window of the table."""

    model: str
    window: Shape3
    precisions: tuple[str, ...] = ("float16",)

    @property
    def title(self) -> str:
        return f"{MODELS[self.model].title}, {'×'.join(map(str, self.window))}"


ROWS = (
    Row("nnunet", (128, 128, 64), ("float16", "int8", "float8")),
    Row("nnunet", (128, 128, 128), ("float16", "int8", "float8")),
    Row("swinunetr", (96, 96, 96)),
    Row("segresnet", (128, 128, 128)),
    Row("resnet50", (128, 128, 128)),
    Row("meshnet", (128, 128, 128)),
)
TINY = {"nnunet": (32, 32, 32), "swinunetr": (64, 64, 64), "segresnet": (32, 32, 32), "resnet50": (32, 32, 32),
        "meshnet": (16, 16, 16)}  # fmt: skip


def exact(model: Model, x: torch.Tensor) -> torch.Tensor:
    """The output in float32, without TF32."""
    module = model.make().to(DEVICE)
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    with torch.no_grad(), flags:
        return first(module(x)).clone()


class Run:
    """The benchmark; rows are written as they are measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.journal = Journal(args.out / "cuda-networks.json", rounds=args.rounds)
        self.rows = [row for row in ROWS if not args.models or row.model in args.models]
        if args.tiny:
            self.rows = [Row(r.model, TINY[r.model], r.precisions) for r in self.rows]

    def run(self) -> None:
        """All rows of the table."""
        jobs = [] if self.args.check else [
            (row.model, row.window, 1, c) for row in self.rows for c in (True, False)]  # fmt: skip
        wait = warm_compile(jobs, 12)
        with tempfile.TemporaryDirectory() as folder:
            self.maker = Maker(Path(folder), self.args.ranges, self.args.timings, self.args.hints)
            self.maker.lower([self.wish(row, p) for row in self.rows for p in self.wanted(row)], self.journal)
            self.maker.compile()
            for line in wait():
                print(line, flush=True)
            for row in self.rows:
                with self.journal.guarded(row.title):
                    self.one(row)
                clear()

    def wanted(self, row: Row) -> list[str]:
        """Precisions that are asked for."""
        return [p for p in row.precisions if p in self.args.precisions]

    def wish(self, row: Row, precision: str) -> Wish:
        """One of wetread's programs."""
        return Wish(row.title, MODELS[row.model], row.window, precision)

    def one(self, row: Row) -> None:
        """One network at one window."""
        model = MODELS[row.model]
        x = synthetic(row.window, 1, DEVICE)[None]
        flop = work_of(model, row.window)
        reference = exact(model, x)
        clear()
        built: dict[str, Built] = {}
        for precision in self.wanted(row):
            with self.journal.guarded(f"{row.title}, {precision}"):
                made = self.maker.build([self.wish(row, precision)])
                made.error = relative_error(made.run(x).clone(), reference)
                built[precision] = made
                if self.args.check or self.args.steps:
                    rows = step_table(made, 1)
                    show_steps(f"{row.title}, {precision}: relative L2 {made.error:.2e}", rows, 5.0)
                    self.journal.note(
                        "steps", self.journal.data.get("steps", {}) | {f"{row.title}, {precision}": rows}
                    )
        stacks = [] if self.args.check else self.stacks(model, x)
        runs: dict[str, Callable[[], Any]] = {s.name: lambda s=s: s.run(s.given) for s in stacks}
        for precision, made in built.items():
            made.network.ready(1)
            runs[f"wetread {precision}"] = lambda m=made: m.network.launch(1)
        times = interleaved(runs, self.args.rounds, 5 if CUDA else 0)
        against = {s.name: times[s.name]["median"] for s in stacks}
        for s in stacks:
            error = relative_error(s.run(s.given), reference)
            self.add(row, s.name, "float16", times[s.name], flop, error, s.peak_bytes, against, note=s.note)
        for precision, made in built.items():
            plan = made.plans[1]
            found = times[f"wetread {precision}"]
            self.add(row, "wetread", precision, found, flop, made.error, made.peak_bytes, against,
                     context_bytes=made.context_bytes, weight_bytes=made.store.bytes, arena_bytes=plan.bytes,
                     steps=len(plan.program.steps),
                     library_steps=[s.name for s in plan.program.steps if s.kernel is None])  # fmt: skip

    def stacks(self, model: Model, x: torch.Tensor) -> list[Stack]:
        """PyTorch's, each with the input that it runs on."""
        found: list[Stack] = []
        with self.journal.guarded(f"{model.title}: eager autocast"):
            made = stack("eager autocast", model, x)
            found.append(made)
        with self.journal.guarded(f"{model.title}: torch.compile"):
            made = best_compile(model, x)
            found.append(made)
        return found

    def add(self, row: Row, engine: str, precision: str, times: dict[str, float], flop: int, error: float,
            peak: int | None, against: dict[str, float], **more: Any) -> None:  # fmt: skip
        """One line."""
        rate = flop / times["median"] * 1e3
        self.journal.add(
            network=MODELS[row.model].title, window="×".join(map(str, row.window)), engine=engine, precision=precision,
            ms_per_window=times["median"], quartiles_ms=[times["q1"], times["q3"]], tflops=rate / 1e12,
            share_of_peak=rate / PEAK[precision], relative_l2=error, peak_bytes=peak,
            times_eager=against.get("eager autocast", float("nan")) / times["median"],
            times_compile=against.get("torch.compile", float("nan")) / times["median"], **more,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranges", type=Path, help="folder that calibrate3d.py wrote")
    parser.add_argument("--timings", type=Path, help="the tuner's cache of times")
    parser.add_argument("--hints", type=Path, help="such a file of an earlier version: what to try")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--precisions", nargs="*", default=["float16", "int8", "float8"])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--check", action="store_true", help="no PyTorch stacks; prints steps")
    parser.add_argument("--steps", action="store_true", help="times each step alone as well")
    parser.add_argument("--tiny", action="store_true", help="small windows, to see that it runs")
    parser.add_argument("--report", type=Path, help="only writes the page from this JSON")
    args = parser.parse_args()
    if args.report:
        report(json.loads(args.report.read_text()), args.out)
        return
    torch.backends.cudnn.benchmark = True
    Run(args).run()


if __name__ == "__main__":
    main()
