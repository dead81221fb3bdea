"""wetread on the GPU benchmarks: plans made as the engine makes them, networks ready to run, steps timed alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from calibrate3d import quantised
from gpu import BANDWIDTH, CUDA, PEAK, Journal, Stack, allocated, clear, once_ms, peak_of, quartiles
from models3d import Model, Shape3, export

from wetread.engines.cuda.cache import TimingCache, stamp
from wetread.engines.cuda.device import Device
from wetread.engines.cuda.layers import kernel_of, precision_of
from wetread.engines.cuda.lower import lower
from wetread.engines.cuda.making import described
from wetread.engines.cuda.operations import operation
from wetread.engines.cuda.plan import Plan, library_settings
from wetread.engines.cuda.program import Program
from wetread.engines.cuda.store import Store
from wetread.engines.cuda.tuner import Options, compile_many, tune
from wetread.engines.cuda.volume import PlannedNetwork
from wetread.graph import Graph


class Graphs:
    """A model's graph in float32 and in 8 bits, exported once.

    Args:
        folder: for ONNX files.
        ranges: folder of what calibrate3d.py wrote; None for no 8 bits.
    """

    def __init__(self, folder: Path, ranges: Path | None) -> None:
        self.folder, self.ranges = folder, ranges
        self._made: dict[tuple[str, str], Graph] = {}

    def of(self, model: Model, precision: str, window: Shape3) -> Graph:
        """The graph that an engine of this precision lowers."""
        kind = precision if precision in ("int8", "float8") else "float32"
        key = model.name, kind
        if key not in self._made and kind == "float32":
            path = self.folder / f"{model.name}.onnx"
            self._made[key] = (
                Graph.load(path) if path.is_file() else export(model, path, None if model.free else window)
            )
        elif key not in self._made:
            if self.ranges is None:
                raise SystemExit(f"{precision} wants --ranges, see calibrate3d.py")
            plain = self.of(model, "float32", window)
            self._made[key] = quantised(plain, self.ranges / f"{model.name}.ranges", precision)
        return self._made[key]


@dataclass
class Built:
    """A network of wetread, ready to run.

    Attributes:
        network: its plans in one arena.
        plans: by batch.
        store: weights.
        peak_bytes: measured on the device while a single window runs, weights included.
        error: relative L2 of the logits against float32.
        times: measured ms of a batch of each size.
    """

    network: PlannedNetwork
    plans: dict[int, Plan]
    store: Store
    peak_bytes: int = 0
    error: float = float("nan")
    times: dict[int, float] = field(default_factory=dict)

    @property
    def context_bytes(self) -> int:
        """Arena and what library kernels keep."""
        return self.network.bytes

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """One batch, copied in and out."""
        batch = len(x)
        source, output = self.network.tensors(batch)
        self.network.ready(batch)
        source.copy_(x)
        self.network.launch(batch)
        return output

    def measure(self, rounds: int = 20) -> dict[int, float]:
        """Median ms of a batch of each size, from replays."""
        for batch in self.network.batches:
            self.network.ready(batch)
            times = [once_ms(lambda b=batch: self.network.launch(b)) for _ in range(rounds + 3)]
            self.times[batch] = quartiles(times[3:] or times)["median"]
        return self.times


@dataclass(frozen=True)
class Wish:
    """A program that a benchmark wants.

    Attributes:
        title: names it in tables.
        model: the network.
        window: voxels.
        precision: of the engine.
        batch: windows at once.
    """

    title: str
    model: Model
    window: Shape3
    precision: str
    batch: int = 1


class Maker:
    """Lowers, compiles side by side, tunes and places: the engine's own functions, in an order that saves time.

    Args:
        folder: for ONNX files.
        ranges: folder of what calibrate3d.py wrote; None for no 8 bits.
        timings: file of the tuner's times.
        hints: such a file of an earlier version, which says which candidates to try.
    """

    def __init__(
        self, folder: Path, ranges: Path | None, timings: Path | None, hints: Path | None = None
    ) -> None:
        self.graphs = Graphs(folder, ranges)
        self.device = Device.open("cuda" if CUDA else "cpu")
        here = stamp(self.device.torch)
        self.options = Options(
            cache=TimingCache(timings, here),
            hints=TimingCache(hints, here) if hints else None,
            hinted=8,
            log=_say,
        )
        self.programs: dict[Wish, Program] = {}
        self.failed: dict[str, str] = {}

    def lower(self, wishes: Sequence[Wish], journal: Journal) -> None:
        """Programs of those that can be lowered."""
        for wish in wishes:
            with journal.guarded(f"lowering {wish.title}, {wish.precision}, {wish.batch} at once"):
                graph = self.graphs.of(wish.model, wish.precision, wish.window)
                self.programs[wish] = lower(graph, wish.window, wish.batch, wish.precision)

    def compile(self) -> None:
        """Candidates of all programs so far, in processes."""
        if not CUDA:
            return
        start = time.time()
        programs = list(self.programs.values())
        self.failed = compile_many(programs, self.device.target, self.options, self.device.torch)
        print(f"[{time.time() - start:6.1f} s] compiled for {len(programs)} programs", flush=True)

    def tuned(self, wish: Wish) -> Plan:
        """The plan of a program that was lowered."""
        start = time.time()
        options = replace(self.options, compiled=self.failed)
        program = self.programs[wish]
        if CUDA:
            program = tune(program, self.device.target, options, self.device.torch)
        plan = Plan.make(program, {"title": wish.title})
        print(f"[{time.time() - start:6.1f} s] tuned {wish.title}, {wish.precision}, {wish.batch} at once: "
              f"{described(plan)}", flush=True)  # fmt: skip
        return plan

    def build(self, wishes: Sequence[Wish]) -> Built:
        """A network that runs each of these batches; lowers what was not lowered before."""
        plans = {}
        for wish in wishes:
            if wish not in self.programs:
                graph = self.graphs.of(wish.model, wish.precision, wish.window)
                self.programs[wish] = lower(graph, wish.window, wish.batch, wish.precision)
            plans[wish.batch] = self.tuned(wish)
        clear()
        base = allocated()
        store = Store(self.device.torch)
        with torch.no_grad():
            made = Built(PlannedNetwork(list(plans.values()), store, self.device), plans, store)
        least = made.network.batches[0]
        x = torch.randn(made.network.tensors(least)[0].shape, device=self.device.torch)
        made.peak_bytes = peak_of(lambda: made.run(x), base)
        return made


def _say(text: str) -> None:
    print(text, flush=True)


def step_table(made: Built, batch: int, repeats: int = 10) -> list[dict[str, Any]]:
    """Each step alone beside its floor, the larger of operations / peak and bytes / bandwidth."""
    plan = made.plans[batch]
    launches = made.network.launches(batch)
    rows = []
    for step, launch in zip(plan.program.steps, launches, strict=True):
        kind = precision_of(plan.program, step)
        work = operation(step.op).work(step, plan.program)
        compute = work.flop / PEAK.get(kind, PEAK["float16"]) * 1e6
        memory = work.bytes / BANDWIDTH * 1e6
        try:
            us = _alone_us(launch, plan.program.precision, repeats)
        except Exception as error:
            us = float("nan")
            print(f"step {step.name} could not be timed: {error}", flush=True)
        rows.append({
            "step": step.name, "op": step.op, "kernel": kernel_of(step), "precision": kind, "us": us,
            "compute_floor_us": compute, "memory_floor_us": memory, "gflop": work.flop / 1e9,
        })  # fmt: skip
    return rows


def _alone_us(launch: Any, precision: str, repeats: int) -> float:
    if not CUDA:
        return once_ms(launch) * 1e3
    stream = torch.cuda.Stream()
    with library_settings(precision), torch.cuda.stream(stream):
        launch()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(repeats):
                launch()
    return quartiles([once_ms(graph.replay) for _ in range(5)])["median"] * 1e3 / repeats


def show_steps(title: str, rows: list[dict[str, Any]], least_us: float = 0.0) -> None:
    """Prints a step table; steps below `least_us` are summed."""
    print(f"-- {title}")
    rest = 0.0
    for r in rows:
        floor = max(r["compute_floor_us"], r["memory_floor_us"])
        if r["us"] < least_us:
            rest += r["us"]
            continue
        print(
            f"{r['us']:8.1f} floor {floor:7.1f}  {r['op']:10} {r['step'][-40:]:40} {r['precision']:8} {r['kernel']}"
        )
    total = sum(r["us"] for r in rows if r["us"] == r["us"])
    floors = sum(max(r["compute_floor_us"], r["memory_floor_us"]) for r in rows)
    print(f"{total:8.1f} sum of {len(rows)} steps ({rest:.1f} not shown), floors {floors:.1f}", flush=True)


class TorchNetwork:
    """A stack of PyTorch's as the volume path runs a network: in float16 tensors of its own."""

    def __init__(self, stacks: dict[int, Stack], window: Shape3, classes: int, device: str) -> None:
        self.batches = tuple(sorted(stacks))
        self._stacks = stacks
        self._made = {
            b: (torch.zeros(b, 1, *window, dtype=torch.float16, device=device),
                torch.empty(b, classes, *window, dtype=torch.float16, device=device))
            for b in self.batches
        }  # fmt: skip

    def tensors(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Input and output."""
        return self._made[batch]

    def ready(self, batch: int) -> None:
        """Nothing to clear."""

    def launch(self, batch: int) -> None:
        """Runs the stack; its result is copied to where the volume path reads it."""
        x, y = self._made[batch]
        y.copy_(self._stacks[batch].run(x))
