"""Several contexts on one engine on a GPU: what a second one adds in memory, and eight beside one in throughput.

    python benchmarks/contexts.py --out DIR [--timings kernels.json]
    python benchmarks/contexts.py --report DIR/cuda-contexts.json --out docs/benchmarks

nnU-Net's 3D U-Net, float16, windows of 128³. Contexts are used as readings use them: one window is submitted to each,
from a thread of its own, and waited for; arrays lie on the device. Besides, the same graphs are replayed on one stream
and on eight without anyone waiting in between.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu import CUDA, DEVICE, Journal, allocated, clear, quartiles, relative_error
from models3d import MODELS, Shape3, synthetic
from wetread_gpu import Maker, Wish

from wetread.engines.common import Port
from wetread.engines.cuda.context import CudaContext
from wetread.engines.cuda.device import Device
from wetread.engines.cuda.executable import Executable
from wetread.engines.cuda.plan import Plan
from wetread.engines.cuda.store import Store

COUNT = 8
PAGE = """\
# Several contexts on one engine

{gpu}, driver {driver}, torch {torch}, Triton {triton}, CUDA {cuda}; {date}; one run of `benchmarks/contexts.py`.
nnU-Net's 3D U-Net, float16, windows of {window}, one window to each context.

| what | value |
|---|---|
| weights, once for all contexts | {weights:.1f} MiB |
| a context says that it holds | {says:.1f} MiB |
| its arena | {arena:.1f} MiB |
| a second context adds on the device | {second:.1f} MiB |
| one context, submitted and waited for | {one:.1f} windows/s |
| {count} contexts, a thread each, submitted and waited for | {many:.1f} windows/s ({ratio:.3f} of one) |
| one context's graph, replayed without waiting | {one_graph:.1f} windows/s |
| {count} contexts' graphs on their streams without waiting | {many_graphs:.1f} windows/s ({graph_ratio:.3f} of one) |
| outputs of all contexts against the first, largest relative L2 | {error:.1e} |
"""


def ports(plan: Plan) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Arrays as the plan has them."""

    def port(name: str) -> Port:
        spec = plan.program.tensors[name]
        return Port(name, spec.shape[1:], (spec.dtype,))

    return tuple(map(port, plan.program.inputs)), tuple(map(port, plan.program.outputs))


class Lanes:
    """Contexts with an input and an output each.

    Args:
        plan: for one window.
        store: weights.
        count: contexts.
        window: voxels.
    """

    def __init__(self, plan: Plan, store: Store, count: int, window: Shape3) -> None:
        device = Device.open("cuda" if CUDA else "cpu")
        self.added: list[int] = []
        self.contexts: list[CudaContext] = []
        for _ in range(count):
            clear()
            before = allocated()
            self.contexts.append(CudaContext(plan, store, device, ports(plan), 1))
            clear()
            self.added.append(allocated() - before)
        spec = [plan.program.tensors[names[0]] for names in (plan.program.inputs, plan.program.outputs)]
        x = synthetic(window, 3, DEVICE)[None].to(spec[0].torch_dtype)
        self.inputs = [x.clone() for _ in range(count)]
        self.outputs = [torch.full(spec[1].shape, float("nan"), dtype=spec[1].torch_dtype, device=DEVICE)
                        for _ in range(count)]  # fmt: skip
        self.graphs = [Executable(plan, store, device) for _ in range(count)]
        for graph in self.graphs:
            graph.tensors[plan.program.inputs[0]].copy_(x)
            graph.capture()
        clear()

    def work(self, number: int, windows: int) -> None:
        """Windows one after the other through one context."""
        for _ in range(windows):
            self.contexts[number].submit((self.inputs[number],), (self.outputs[number],)).wait()

    def rate(self, count: int, windows: int) -> float:
        """Windows a second of so many contexts, each in a thread of its own."""
        threads = [threading.Thread(target=self.work, args=(i, windows // count)) for i in range(count)]
        clear()
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        clear()
        return windows / (time.perf_counter() - start)

    def graph_rate(self, count: int, windows: int) -> float:
        """The same from replays alone, nothing waited for in between."""
        clear()
        start = time.perf_counter()
        for _ in range(windows // count):
            for graph in self.graphs[:count]:
                with graph.current():
                    graph.run()
        clear()
        return windows / (time.perf_counter() - start)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    window: Shape3 = tuple(args.window)
    with tempfile.TemporaryDirectory() as folder:
        maker = Maker(Path(folder), None, args.timings, args.hints)
        journal = Journal(args.out / "cuda-contexts.json")
        wish = Wish("nnU-Net", MODELS["nnunet"], window, "float16")
        maker.lower([wish], journal)
        maker.compile()
        plan = maker.tuned(wish)
    store = Store(maker.device.torch)
    lanes = Lanes(plan, store, args.count, window)
    for count in (1, args.count):
        lanes.rate(count, args.count)
    rates: dict[str, list[float]] = {"one": [], "many": [], "one_graph": [], "many_graphs": []}
    for _ in range(args.rounds):
        rates["one"].append(lanes.rate(1, args.windows))
        rates["many"].append(lanes.rate(args.count, args.windows))
        rates["one_graph"].append(lanes.graph_rate(1, args.windows))
        rates["many_graphs"].append(lanes.graph_rate(args.count, args.windows))
    middle = {key: quartiles(values)["median"] for key, values in rates.items()}
    found = {
        "window": "×".join(map(str, window)), "count": args.count, "weights": store.bytes / 2**20,
        "says": lanes.contexts[1].bytes / 2**20, "arena": plan.bytes / 2**20,
        "second": lanes.added[1] / 2**20, **middle,
        "ratio": middle["many"] / middle["one"], "graph_ratio": middle["many_graphs"] / middle["one_graph"],
        "error": max(relative_error(y, lanes.outputs[0]) for y in lanes.outputs), "rates": rates,
    }  # fmt: skip
    journal.add(**found)
    return journal.data


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--timings", type=Path, help="the tuner's cache of times")
    parser.add_argument("--hints", type=Path, help="such a file of an earlier version: what to try")
    parser.add_argument("--window", type=int, nargs=3, default=(128, 128, 128))
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--windows", type=int, default=160, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--report", type=Path, help="only writes the page from this JSON")
    args = parser.parse_args()
    data = json.loads(args.report.read_text()) if args.report else measure(args)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cuda-contexts.json").write_text(json.dumps(data, indent=1) + "\n")
    (args.out / "cuda-contexts.md").write_text(PAGE.format(**data["machine"], **data["rows"][0]))


if __name__ == "__main__":
    main()
