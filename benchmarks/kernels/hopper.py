"""The Hopper kernels one by one on the device: values against cuDNN in float32, time beside the floor.

    python benchmarks/kernels/hopper.py --out "$OUT"

Compiles everything in parallel first; writes hopper.json. `--only TEXT` takes the cases whose name holds it; `--old
FOLDER` times an earlier march beside this one (FOLDER has march.cu and its host side as old_march.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from wetread.kernels import weights
from wetread.kernels.arguments import Epilogue, Norm
from wetread.kernels.hopper import driver, first, march, march2, parts, point

PEAK = {torch.float16: 989e12, torch.int8: 1979e12, torch.float8_e4m3fn: 1979e12}
BANDWIDTH = 4.3e12
HALF, INT8 = torch.float16, torch.int8


@dataclass(frozen=True)
class Case:
    """A layer: 3×3×3, inputs of `channels`, on a cube (or D, H, W) of `size`."""

    kernel: str
    channels: tuple[int, ...]
    co: int
    size: int
    dtype: torch.dtype = HALF
    outputs: int = 32
    norm: bool = False
    groups: int = 0
    residual: bool = False

    @property
    def name(self) -> str:
        extra = " norm on load" * self.norm + f" of {self.groups} groups" * bool(self.groups)
        kind = str(self.dtype).removeprefix("torch.")
        c = "+".join(map(str, self.channels))
        extra += " residual" * self.residual
        return f"{self.kernel} {kind} {c}→{self.co} at {self.size}³ ({self.outputs}){extra}"

    @property
    def stride(self) -> int:
        return 2 if self.kernel == "march2" else 1

    def floor_s(self) -> float:
        if self.kernel in ("up", "head"):
            out = self.size**3 * (8 if self.kernel == "up" else 1)
            return (self.size**3 * self.channels[0] + out * self.co) * 2 / BANDWIDTH
        out = (self.size // self.stride) ** 3
        width = 2 if self.norm or self.dtype == HALF else 1
        moved = self.size**3 * sum(self.channels) * width + out * self.co * 2 * (2 if self.residual else 1)
        return max(2.0 * out * 27 * sum(self.channels) * self.co / PEAK[self.dtype], moved / BANDWIDTH)


CASES = [
    Case("march", (32,), 32, 128),
    Case("march", (32,), 32, 128, INT8),
    Case("march", (32, 32), 32, 128),
    Case("march", (32, 32), 32, 128, INT8),
    Case("march", (64, 64), 64, 64),
    Case("march", (32,), 32, 128, norm=True),
    Case("march", (32,), 32, 128, INT8, norm=True),
    Case("march", (64,), 64, 64, norm=True),
    Case("march", (64,), 64, 64, INT8, norm=True),
    # SegResNet
    Case("march", (32,), 32, 128, norm=True, groups=8),
    Case("march", (32,), 32, 128, norm=True, groups=8, residual=True),
    # SwinUNETR
    Case("march", (48,), 48, 96, outputs=48),
    Case("march", (48,), 48, 96, outputs=48, norm=True),
    Case("march", (48, 48), 48, 96, outputs=48),
    Case("march", (48,), 48, 48, outputs=48),
    Case("march", (96,), 96, 24, outputs=48),
    Case("march", (96,), 96, 24, outputs=32),
    Case("march2", (32,), 64, 128, outputs=64),
    Case("march2", (32,), 64, 128, outputs=32),
    Case("march2", (32,), 64, 128, INT8, outputs=64),
    Case("march2", (64,), 128, 64, outputs=32),
    Case("march2", (64,), 128, 64, INT8, outputs=64),
    Case("first", (1,), 32, 128),
    Case("first", (1,), 48, 96, outputs=48),
    Case("up", (64,), 32, 64, norm=True),
    Case("up", (64,), 32, 64),
    Case("head", (32,), 3, 128, norm=True),
    Case("head", (48,), 14, 96) if point.applies_head(48, 14, HALF) else Case("head", (64,), 14, 96),
]


def sources(case: Case) -> tuple[str, tuple[str, ...]]:
    """Text and constants of a case, as its launch asks for them."""
    some = torch.zeros(1)
    e = Epilogue(None if case.dtype == HALF else some, sums=some, residual=some if case.residual else None)
    if case.kernel == "march":
        return march.source(case.dtype, case.outputs), tuple(
            march.defines(case.channels, case.dtype, e, case.norm, case.outputs)
        )
    if case.kernel == "march2":
        return march2.source(case.dtype, case.outputs), tuple(
            march2.defines(case.channels[0], case.dtype, e, case.outputs)
        )
    if case.kernel == "first":
        return parts.text("first"), tuple(first.defines(case.co, HALF, e))
    up = case.kernel == "up"
    e = Epilogue(bias=some)
    return parts.text("point"), tuple(
        point.defines(case.channels[0], e, case.norm, HALF, up, 0 if up else case.co)
    )


_folder = Path(tempfile.gettempdir()) / "wetread-cubins"


def cached(source: str, arch: str, defines: Sequence[str] = ()) -> bytes:
    """`driver.compile_source`, which needs more than torch, with a folder of its own."""
    at = _folder / hashlib.sha256(repr((source, arch, tuple(defines))).encode()).hexdigest()
    if not at.exists():
        _folder.mkdir(exist_ok=True)
        at.write_bytes(driver._compile(source, arch, defines))
    return at.read_bytes()


def _warm(job: tuple[str, tuple[str, ...]]) -> None:
    cached(job[0], "sm_90a", job[1])


def time_ms(launch: Callable[[], None], repeats: int = 10, rounds: int = 9) -> float:
    """Median milliseconds of one launch, from replays of a CUDA graph of `repeats`."""
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            launch()
    graph.replay()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / repeats)
    return float(statistics.median(times))


def conv32(x: torch.Tensor, w: torch.Tensor, stride: int) -> torch.Tensor:
    y = torch.nn.functional.conv3d(x.permute(0, 4, 1, 2, 3), w.float(), stride=stride, padding=1)
    return y.permute(0, 2, 3, 4, 1)


def point_row(case: Case, x: torch.Tensor, g: torch.Generator) -> dict[str, Any]:
    """Checks and times a head or a transposed convolution."""
    c, norm, value = case.channels[0], None, x.float()
    if case.norm:
        v = x.double()
        sums = torch.stack([v.sum((1, 2, 3)), (v**2).sum((1, 2, 3))], -1) / 8
        gamma = torch.rand(c, device="cuda", generator=g) + 0.5
        norm = Norm(sums.expand(8, 1, c, 2).contiguous(), gamma, gamma - 1, 1e-5, 0.01)
        value = torch.nn.functional.instance_norm(value.permute(0, 4, 1, 2, 3), weight=gamma, bias=gamma - 1)
        value = torch.nn.functional.leaky_relu(value, 0.01).permute(0, 2, 3, 4, 1)
    bias = torch.randn(case.co, device="cuda", generator=g)
    first = value.permute(0, 4, 1, 2, 3)
    if case.kernel == "up":
        w = (torch.randn(c, case.co, 2, 2, 2, device="cuda", generator=g) * 0.1).half()
        r = torch.nn.functional.conv_transpose3d(first, w.float(), bias, 2).permute(0, 2, 3, 4, 1)
        out, packed = torch.full(r.shape, float("nan"), device="cuda", dtype=HALF), point.pack_up(w)
        go = lambda: point.upconv_point(x, packed, out, Epilogue(bias=bias), norm)  # noqa: E731
    else:
        w = (torch.randn(case.co, c, 1, 1, 1, device="cuda", generator=g) * 0.1).half()
        r = torch.nn.functional.conv3d(first, w.float(), bias)
        out, packed = torch.full_like(r, float("nan"), dtype=HALF).contiguous(), point.pack_head(w)
        go = lambda: point.head_point(x, packed, bias, out, norm)  # noqa: E731
    go()
    error, once = float((out.float() - r).norm() / r.norm()), out.clone()
    row = {
        "case": case.name,
        "us": time_ms(go) * 1e3,
        "floor_us": case.floor_s() * 1e6,
        "error": error,
        "sums": 0.0,
    }
    return {**row, "same": bool(torch.equal(once, out))}


def run(case: Case, old: Any = None) -> dict[str, Any]:
    """Checks and times one case."""
    g = torch.Generator("cuda").manual_seed(7)
    shape = (1, case.size, case.size, case.size)
    x = [torch.randn(*shape, c, device="cuda", generator=g) for c in case.channels]
    if case.kernel in ("up", "head"):
        return point_row(case, x[0].half(), g)
    w = torch.randn(case.co, sum(case.channels), 3, 3, 3, device="cuda", generator=g) * 0.05
    scale, norm, inverse = None, None, 1.0
    if case.norm:
        x = [(t * 2 + 1).half() for t in x]
        v, c = x[0].double(), case.channels[0]
        sums = torch.stack([v.sum((1, 2, 3)), (v**2).sum((1, 2, 3))], -1) / 8
        gamma = torch.rand(c, device="cuda", generator=g) + 0.5
        beta = torch.randn(c, device="cuda", generator=g) * 0.2
        norm = Norm(sums.expand(8, 1, c, 2).contiguous(), gamma, beta, 1e-5, 0.01, case.groups)
        inverse = 1.0 if case.dtype == HALF else 28.0
        z = torch.nn.functional.group_norm(
            x[0].float().permute(0, 4, 1, 2, 3), case.groups or c, gamma, beta, 1e-5
        )
        z = torch.nn.functional.leaky_relu(z, 0.01).permute(0, 2, 3, 4, 1)
        real = [(z * 28).round().clamp(-128, 127) if case.dtype == INT8 else z]
        del v, z
    elif case.dtype == INT8:
        x = [(torch.nn.functional.leaky_relu(t, 0.01) * 28).round().clamp(-127, 127).to(INT8) for t in x]
        real = [t.float() for t in x]
    else:
        x = [t.half() for t in x]
        real = [t.float() for t in x]
    if case.dtype != HALF:
        q = weights.quantise(w, 1 / 28, case.dtype)
        w, scale = q.weight, q.scale
    else:
        w = w.half()
    r = conv32(torch.cat(real, -1), w, case.stride) * (1.0 if scale is None else scale)
    del real
    given = torch.randn(r.shape, device="cuda", generator=g).half() if case.residual else None
    if given is not None:
        r += given.float()
    out = torch.full(r.shape, float("nan"), device="cuda", dtype=HALF)
    sums = torch.zeros(8, 1, case.co, 2, dtype=torch.float64, device="cuda")
    epilogue = Epilogue(scale, sums=sums, residual=given)
    if case.kernel == "march":
        packed = march.pack(w, case.channels, case.outputs)
        go = lambda: march.conv3d_march(x, packed, out, epilogue, norm, inverse, case.outputs)  # noqa: E731
    elif case.kernel == "march2":
        packed = march2.pack(w, case.outputs)
        go = lambda: march2.conv3d_march2(x[0], packed, out, epilogue, case.outputs)  # noqa: E731
    else:
        packed = first.pack(w)
        go = lambda: first.conv3d_first(x[0], packed, out, epilogue)  # noqa: E731
    go()
    error = float((out.float() - r).norm() / r.norm())
    total, mean = sums.sum(0)[0] / r[0, ..., 0].numel(), r.double().mean((0, 1, 2, 3))
    off = float(
        ((total[:, 1] - total[:, 0] ** 2) / r.double().var((0, 1, 2, 3), unbiased=False) - 1).abs().max()
    )
    off = max(off, float((total[:, 0] - mean).abs().max()))
    once = out.clone()
    row = {
        "case": case.name,
        "us": time_ms(go) * 1e3,
        "floor_us": case.floor_s() * 1e6,
        "error": error,
        "sums": off,
    }
    row["same"] = bool(torch.equal(once, out))
    if (
        old is not None
        and case.kernel == "march"
        and case.outputs == 32
        and not case.groups
        and not case.residual
    ):
        p = old.pack(w, case.channels)
        row["old_us"] = time_ms(lambda: old.conv3d_march(x, p, out, replace(epilogue), norm, inverse)) * 1e3
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--old", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    start, old = time.time(), None
    cases = [c for c in CASES if args.only in c.name]
    with multiprocessing.get_context("spawn").Pool(15) as pool:
        pool.map(_warm, [sources(c) for c in cases], chunksize=1)
    driver.compile_source = cached
    print(f"compiled after {time.time() - start:.0f} s", flush=True)
    if args.old:
        sys.path.insert(0, str(args.old))
        import old_march as old
    torch.backends.cudnn.allow_tf32 = False
    rows = []
    for case in cases:
        try:
            rows.append(run(case, old))
        except Exception as failed:
            rows.append({"case": case.name, "failed": f"{type(failed).__name__}: {str(failed)[:300]}"})
        row = rows[-1]
        if "failed" in row:
            print(row["case"], row["failed"], flush=True)
            continue
        was = f" old {row['old_us']:6.1f}" if "old_us" in row else ""
        print(f"{row['case']:64} {row['us']:7.1f} µs floor {row['floor_us']:6.1f}{was} error {row['error']:.1e} "
              f"sums {row['sums']:.0e} {'' if row['same'] else 'MOVES'}", flush=True)  # fmt: skip
        args.out.joinpath("hopper.json").write_text(json.dumps(rows, indent=1))
    print(f"done after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
