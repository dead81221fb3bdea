"""nnU-Net's 3D U-Net from wetread's kernels, beside eager autocast and torch.compile, in one run on one GPU.

    python benchmarks/kernels/unet.py --size 128 128 64 --types float16 int8 --tiles tiles.json --compile --out DIR

Checks the logits of every variant against float32 (relative L2), times whole windows from replays of a CUDA graph
(variants interleaved), and each step beside its floor. Writes unet-<size>.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from network import Plan, UNet, Wiring, scales_of

from wetread.kernels import arguments, tune
from wetread.kernels.launch import Tile

PEAK = {"float16": 989e12, "int8": 1979e12, "float8_e4m3fn": 1979e12}
BANDWIDTH = 4.3e12  # measured copy, bytes/s
WINDOWS = 64.2  # of a sample in MLPerf's 3D-UNet, on average over the 43 cases


def chooser(path: Path | None, used: dict[str, Any]) -> Callable[[tune.Problem], Tile]:
    """Winners of a file written by layers.py (any batch); what it lacks is tuned here."""
    known = {} if path is None else json.loads(path.read_text())
    rows = {}
    for key, row in known.items():
        k = json.loads(key)
        rows[tuple(k["size"]), tuple(k["channels"]), k["co"], k["dtype"], k["stride"]] = row

    def choose(p: tune.Problem) -> Tile:
        eight = p.dtype.replace("float8_e4m3fn", "int8")  # the 8-bit types take the same tiles
        key = (tuple(p.size), p.channels, p.co, eight, p.stride)
        if key not in rows:
            like = next((r for k, r in rows.items() if k[1:] == key[1:] and tune.Problem(
                p.batch, k[0], p.channels, p.co, p.dtype, p.stride).small == p.small), None)  # fmt: skip
            tiles = [tune.tile_from(b["tile"]) for b in like["best"]] if like else None
            rows[key] = tune.tune(p, tiles)[0]
        # the wiring's tensors have no voxel beside W, which pairs would need
        best = next(b for b in (rows[key], *rows[key].get("best", [])) if b["tile"]["family"] != "pairs")
        used[str(p)] = best["tile"]
        return tune.tile_from(best["tile"])

    return choose


def captured(run: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def interleaved(variants: dict[str, Callable[[], Any]], rounds: int = 30) -> dict[str, dict[str, float]]:
    """Median and quartiles in ms, one run of each in turn."""
    times: dict[str, list[float]] = {k: [] for k in variants}
    for r in range(rounds + 5):
        for name, run in variants.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            if r >= 5:
                times[name].append(start.elapsed_time(end))
    return {
        k: dict(zip(("q1", "ms", "q3"), statistics.quantiles(v, n=4), strict=True)) for k, v in times.items()
    }


def step_table(plan: Plan, dtype: str) -> list[dict[str, Any]]:
    rows = []
    for s in plan.steps:
        ms = tune.time_ms(s.run, repeats=5, rounds=5)
        peak = PEAK["float16"] if s.kernel.startswith(("few", "head")) else PEAK[dtype]
        rows.append({"step": s.name, "kernel": s.kernel, "us": ms * 1e3, "compute_floor_us": s.flop / peak * 1e6,
                     "memory_floor_us": s.bytes / BANDWIDTH * 1e6, "tflops": s.flop / ms / 1e9})  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        floor = max(r["compute_floor_us"], r["memory_floor_us"])
        print(f"  {r['step']:18} {r['us']:8.1f} µs  floor {floor:7.1f} (compute {r['compute_floor_us']:6.1f}, memory "
              f"{r['memory_floor_us']:6.1f})  {r['tflops']:5.0f} TFLOP/s  {r['kernel']}")  # fmt: skip
    print(f"  sum {sum(r['us'] for r in rows):8.1f} µs, floors "
          f"{sum(max(r['compute_floor_us'], r['memory_floor_us']) for r in rows):.1f} µs", flush=True)  # fmt: skip


def warm(
    size: tuple[int, int, int], batch: int, kinds: list[str], tiles: Path | None, share: tuple[int, int]
) -> None:
    """In a worker: compiles its share of the variants by launching them."""
    model = UNet().cuda().eval()
    scales = scales_of(model, torch.randn(batch, 1, *size, device="cuda"))
    for kind in kinds:
        Wiring(model, size, batch, getattr(torch, kind), chooser(tiles, {}), scales, share).build()
    torch.cuda.synchronize()


def warm_all(args: argparse.Namespace, size: tuple[int, int, int]) -> None:
    context = multiprocessing.get_context("spawn")
    n = args.processes
    workers = [
        context.Process(target=warm, args=(size, args.batch, args.types, args.tiles, (i, n)))
        for i in range(n)
    ]
    for w in workers:
        w.start()
    for w in workers:
        w.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(128, 128, 64))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--types", nargs="+", default=["float16", "int8"])
    parser.add_argument("--tiles", type=Path)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--apart", action="store_true", help="every norm a pass of its own")
    parser.add_argument(
        "--serial", action="store_true", help="no launch begins before the one before has ended"
    )
    parser.add_argument("--processes", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    size = tuple(args.size)
    arguments.OVERLAP = not args.serial
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    model = UNet().cuda().eval()
    x = torch.randn(args.batch, 1, *size, device="cuda")
    with torch.no_grad():
        reference = model(x).double()
    other = torch.randn(args.batch, 1, *size, device="cuda", generator=torch.Generator("cuda").manual_seed(7))
    scales = scales_of(model, other)
    error = lambda y: float((y.double() - reference).norm() / reference.norm())  # noqa: E731
    variants: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    start = time.time()
    if args.processes:
        warm_all(args, size)
        print(f"compiled after {time.time() - start:.0f} s", flush=True)

    def autocast() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cuda", torch.float16):
            return model(x)

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    rows["eager autocast"] = {"error": error(autocast()), "bytes": torch.cuda.max_memory_allocated() - before}
    variants["eager autocast"] = autocast
    if args.compile:
        half = UNet().cuda().eval()
        half.load_state_dict(model.state_dict())
        half = half.half().to(memory_format=torch.channels_last_3d)
        fast = torch.compile(half, mode="reduce-overhead")
        xh = x.half().contiguous(memory_format=torch.channels_last_3d)

        def compiled() -> torch.Tensor:
            with torch.no_grad():
                return fast(xh)

        for _ in range(3):
            y = compiled()
        rows["torch.compile"] = {"error": error(y)}
        variants["torch.compile"] = compiled
        print(f"torch.compile ready after {time.time() - start:.0f} s", flush=True)
    plans, used = {}, {}
    graphs = []
    for kind in args.types:
        before = torch.cuda.memory_allocated()
        plan = Wiring(
            model,
            size,
            args.batch,
            getattr(torch, kind),
            chooser(args.tiles, used),
            scales,
            fuse=not args.apart,
        ).build()
        plan.source.copy_(x[:, 0, ..., None])
        plan.result.fill_(float("nan"))
        plan.run()
        torch.cuda.synchronize()
        rows[f"wetread {kind}"] = {
            "error": error(plan.result),
            "bytes": torch.cuda.memory_allocated() - before,
        }
        graph = captured(plan.run)
        plan.result.fill_(float("nan"))
        graph.replay()
        rows[f"wetread {kind}"]["error_of_graph"] = error(plan.result)
        variants[f"wetread {kind}"] = graph.replay
        graphs.append(graph)
        plans[kind] = plan
        print(kind, rows[f"wetread {kind}"], f"{time.time() - start:.0f} s", flush=True)
    flop = sum(s.flop for s in next(iter(plans.values())).steps)
    for name, t in interleaved(variants).items():
        ms = t["ms"] / args.batch
        rows[name] |= {
            **t,
            "ms_per_window": ms,
            "tflops": flop / args.batch / ms / 1e9,
            "samples_per_s": 1e3 / ms / WINDOWS,
        }
        print(f"{name:18} {ms:7.3f} ms a window ({t['q1']:.3f}–{t['q3']:.3f})  {rows[name]['tflops']:6.0f} TFLOP/s  "
              f"relative L2 {rows[name]['error']:.2e}  ~{rows[name]['samples_per_s']:.2f} samples/s "
              "(network alone, if 128³)",
              flush=True)  # fmt: skip
    steps = {}
    for kind, plan in plans.items():
        print(f"\n{kind}: each step alone")
        steps[kind] = step_table(plan, kind)
        show(steps[kind])
    record = {
        "machine": {**tune.fingerprint(), "python": platform.python_version()}, "size": size, "batch": args.batch,
        "flop": flop, "variants": rows, "steps": steps, "tiles": used,
    }  # fmt: skip
    name = "x".join(map(str, size)) + (f"-b{args.batch}" if args.batch > 1 else "")
    (args.out / f"unet-{name}.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
