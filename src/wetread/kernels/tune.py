"""The candidates for a convolution, timed on the device; the fastest correct one is kept.

A candidate's output is compared with cuDNN's in float32 before it may win. Results are kept as JSON under a key
of the problem, the device, its driver, the libraries and the kernels' own source, so that a tuned plan
reproduces and a changed kernel is tuned anew.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from wetread.errors import WetreadError
from wetread.kernels import weights
from wetread.kernels.hopper import march
from wetread.kernels.launch import Epilogue, Norm, Tile, conv3d, norm_reduce

Tensor: TypeAlias = torch.Tensor
SMALL = 4096  # voxels: up to here K is split and norm_reduce takes the statistics
SHARED_BYTES = (
    225_000  # of a Hopper or Ampere (164 kB) multiprocessor; larger candidates fail to launch and drop out
)
MARCH = Tile("march", (1, 16, 16), 32, 32)  # Hopper only; elsewhere it drops out
TOLERANCE = 2e-3  # relative L2 against float32 of the same operands; float16 rounding gives 3e-4


@dataclass(frozen=True)
class Problem:
    """A convolution to tune.

    Attributes:
        batch: windows.
        size: D, H, W of the input.
        channels: of each input.
        co: output channels.
        dtype: "float16", "int8" or "float8_e4m3fn".
        stride: 1 or 2.
        kernel: taps along each axis.
    """

    batch: int
    size: tuple[int, int, int]
    channels: tuple[int, ...]
    co: int
    dtype: str = "float16"
    stride: int = 1
    kernel: int = 3

    @property
    def out_size(self) -> tuple[int, int, int]:
        """D, H, W of the output."""
        d, h, w = ((s - 1) // self.stride + 1 for s in self.size)
        return d, h, w

    @property
    def small(self) -> bool:
        """Whether the norm is taken by norm_reduce, from parts."""
        d, h, w = self.out_size
        return d * h * w <= SMALL

    @property
    def flop(self) -> int:
        """Operations of the direct convolution."""
        d, h, w = self.out_size
        return 2 * self.batch * d * h * w * self.kernel**3 * sum(self.channels) * self.co

    @property
    def bytes(self) -> int:
        """Inputs and weights read once, output written once as float16."""
        b = 2 if self.dtype == "float16" else 1
        voxels, out = (self.batch * s[0] * s[1] * s[2] for s in (self.size, self.out_size))
        c = sum(self.channels)
        return voxels * c * b + c * self.co * self.kernel**3 * b + out * self.co * 2

    def floor_s(self) -> float:
        """Seconds that an H200 needs at its peak rates: the larger of arithmetic and memory."""
        peak = 989e12 if self.dtype == "float16" else 1979e12
        return max(self.flop / peak, self.bytes / 4.3e12)


def _power(n: int) -> int:
    return 1 << (max(n, 1) - 1).bit_length()


def _fits(tile: Tile, width: int) -> bool:
    """Registers of the accumulators and shared memory of the pipeline."""
    d, h, w = tile.shape
    rows = d * h * w
    if (
        rows * tile.bn // (tile.warps * 32) > 160
        or h * w * (d if tile.family in ("gather", "taps") else 1) < 64
    ):
        return False
    loaded = ((d + 2) * h * w + 3 * tile.bn) if tile.family in ("planes", "pairs") else rows + tile.bn
    return tile.stages * loaded * tile.bk * width <= SHARED_BYTES


def candidates(problem: Problem) -> list[Tile]:
    """Tiles worth timing, each family where it applies."""
    width = 2 if problem.dtype == "float16" else 1
    least = min(problem.channels)
    d, h, w = problem.out_size
    out: list[Tile] = []
    steps = problem.kernel**3 * sum(problem.channels)
    bks = [b for b in (32, 64, 128) if b <= _power(least) and b * width <= 256]
    bns = [b for b in (32, 64, 128) if b <= _power(problem.co) and (problem.co % b == 0 or b == 32)]
    same = problem.stride == 1 and problem.kernel == 3
    for bk in bks[-2:]:
        for bn in bns[-2:]:
            for rows, warps in ((64, 4), (128, 4), (128, 8)):
                programs = problem.batch * -(-d * h * w // rows) * -(-problem.co // bn)
                shape = _box((d, h, w), rows) if same else None
                for s in _splits(programs, steps // bk) if problem.small else (1,):
                    if shape is not None:
                        out.append(Tile("taps", shape, bn, bk, warps, 4, s))
                    if not same or shape is None:
                        out.append(Tile("gather", (1, 1, rows), bn, bk, warps, 3 if warps == 8 else 4, s))
    if same and not problem.small:
        out += _planes(problem, bks)
        if problem.size[2] % 16 == 0 and sum(problem.channels) <= 128 and problem.co <= 64:
            out += _pairs(problem)
    out = [t for t in dict.fromkeys(out) if _fits(t, width)]
    if (
        same
        and not problem.small
        and march.applies(problem.channels, problem.co, getattr(torch, problem.dtype))
    ):
        out.append(MARCH)
    return out


def _splits(programs: int, steps: int) -> list[int]:
    """Parts of K that make one or two waves of programs of 132 multiprocessors, four steps or more in each."""
    return sorted({max(1, min(wave // programs, steps // 4, 32)) for wave in (132, 264)})


def _box(size: Sequence[int], rows: int) -> tuple[int, int, int] | None:
    """A box of `rows` voxels (a power of two), at most twice as large as the volume along any axis."""
    w = min(8, _power(size[2]))
    h = min(8, _power(size[1]), rows // w)
    d = rows // (w * h)
    return (d, h, w) if d <= _power(size[0]) else None


def _planes(problem: Problem, bks: Sequence[int]) -> list[Tile]:
    bn = min(64 if problem.co % 64 == 0 else 32, _power(problem.co))
    wide = {bn, 128} if problem.co % 128 == 0 else {bn}
    shapes = (((2, 8, 16), 4), ((2, 8, 16), 8), ((4, 8, 16), 4), ((4, 8, 16), 8), ((4, 8, 8), 4))
    return [Tile("planes", s, b, bk, wp, st)
            for s, wp in shapes for b in wide for bk in bks[-2:] for st in (2, 3)]  # fmt: skip


def _pairs(problem: Problem) -> list[Tile]:
    bn = 2 * problem.co
    shapes = (
        ((1, 8, 16), 4),
        ((1, 8, 16), 8),
        ((2, 8, 16), 4),
        ((2, 8, 16), 8),
        ((4, 8, 8), 4),
        ((4, 8, 16), 8),
    )
    return [Tile("pairs", s, b, bk, wp, st)
            for s, wp in shapes for b in {bn, min(bn, 64)} for bk in (64, 128) if bk <= 4 * min(problem.channels)
            for st in (2, 3)]  # fmt: skip


def pack(weight: Tensor, channels: Sequence[int], tile: Tile) -> list[Tensor]:
    """A layer's weights [CO, sum of channels, ...] as the tile's kernel reads them."""
    if tile.family == "march":
        return [march.pack(weight, channels, tile.bn)]
    each = weights.pack_pairs if tile.family == "pairs" else weights.pack_rows
    return [each(part.contiguous()) for part in weight.split(list(channels), 1)]


@dataclass
class Bench:
    """Random tensors of a problem and its reference, on the device."""

    problem: Problem
    x: list[Tensor]
    weight: list[Tensor]
    scale: Tensor | None
    reference: Tensor
    norm: Norm
    out: Tensor

    @classmethod
    def make(cls, problem: Problem, *, reference: bool = True) -> Bench:
        """Activations as a network has them: normalised, leaky ReLU, in 8 bits with 4.5 SD in range."""
        p, dtype = problem, getattr(torch, problem.dtype)
        gen = torch.Generator("cuda").manual_seed(hash(p) % 2**31)
        x, real = [], []
        for c in p.channels:
            v = torch.randn(p.batch, *p.size, c, device="cuda", generator=gen)
            v = torch.where(v > 0, v, v * 0.01)
            if dtype == torch.int8:
                v = (v * 28).round().clamp(-127, 127)
            t = weights.padded((p.batch, *p.size, c), dtype)
            t.copy_(v.to(dtype))
            x.append(t)
            real.append(t.float())
        w = torch.randn(p.co, sum(p.channels), *([p.kernel] * 3), device="cuda", generator=gen) * 0.05
        scale = None
        if dtype == torch.float16:
            w = w.half()
        else:
            q = weights.quantise(w, 1 / 28, dtype)
            w, scale = q.weight, q.scale
        y = torch.empty(0, device="cuda")
        if reference:
            wide = torch.cat(real, -1).permute(0, 4, 1, 2, 3)
            allowed = torch.backends.cudnn.allow_tf32
            torch.backends.cudnn.allow_tf32 = False
            y = torch.nn.functional.conv3d(wide, w.float(), stride=p.stride, padding=(p.kernel - 1) // 2)
            torch.backends.cudnn.allow_tf32 = allowed
            y = y.permute(0, 2, 3, 4, 1) * (1.0 if scale is None else scale)
        ones = torch.ones(p.co, device="cuda")
        sums = torch.zeros(8, p.batch, p.co, 2, dtype=torch.float64, device="cuda")
        out = torch.empty(p.batch, *p.out_size, p.co, dtype=torch.float16, device="cuda")
        return cls(
            p, x, list(w.split(list(p.channels), 1)), scale, y, Norm(sums, ones, ones * 0, 1e-5, 0.01), out
        )

    def launcher(self, tile: Tile) -> tuple[Callable[[], None], Tensor]:
        """A launch of the tile's kernel (and of norm_reduce where the volume is small), and what it writes."""
        p = self.problem
        packed = pack(torch.cat(self.weight, 1), p.channels, tile)
        common: dict[str, Any] = {"kernel": (p.kernel,) * 3, "stride": p.stride}
        shape = (p.batch, *p.out_size, p.co)
        if not p.small:
            y = torch.full(shape, float("nan"), dtype=torch.float16, device="cuda")
            epilogue = Epilogue(self.scale, sums=self.norm.sums)
            return lambda: conv3d(self.x, packed, y, tile, epilogue, **common), y
        parts = torch.full((tile.splits, *shape), float("nan"), device="cuda")
        y = parts if tile.splits > 1 else parts[0]
        epilogue = Epilogue(self.scale)

        def run() -> None:
            conv3d(self.x, packed, y, tile, epilogue, **common)
            norm_reduce(parts, self.norm, self.out)

        return run, parts

    def check(self, written: Tensor) -> float:
        """Relative L2 error against the reference; NaN where a voxel was not written."""
        y = written.sum(0) if written.ndim == 6 else written.float()
        return float((y - self.reference).norm() / self.reference.norm())


def time_ms(launch: Callable[[], None], *, repeats: int = 10, rounds: int = 7) -> float:
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


def _failures() -> tuple[type[Exception], ...]:
    """What a candidate may raise that does not fit the device: it drops out."""
    from triton.errors import TritonError

    return (TritonError, RuntimeError, ValueError, WetreadError)


def compile_all(jobs: Iterable[tuple[Problem, Tile]]) -> None:
    """Compiles candidates by launching each once: in worker processes, to fill Triton's cache on disk."""
    made: dict[Problem, Bench] = {}
    for problem, tile in jobs:
        # launching on a cut volume compiles the same kernel: sizes are arguments (kept multiples of 16)
        if problem not in made:
            made.clear()
            made[problem] = Bench.make(problem, reference=False)
        try:
            made[problem].launcher(tile)[0]()
            torch.cuda.synchronize()
        except _failures() as error:
            print("drops out:", problem.channels, problem.co, tile, type(error).__name__, str(error)[:80])  # noqa: T201


def fingerprint() -> dict[str, str]:
    """What a timing depends on besides the problem."""
    import triton

    source = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.[pc][yu]")):
        if file.is_file():
            source.update(file.read_bytes())
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": str(torch.cuda.driver_version()) if hasattr(torch.cuda, "driver_version") else "",
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "kernels": source.hexdigest()[:16],
    }


class Cache:
    """Winners by problem, in one JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.stamp = fingerprint()

    def key(self, problem: Problem) -> str:
        """Text that names the problem and everything its timing depends on."""
        return json.dumps({**asdict(problem), **self.stamp}, sort_keys=True)

    def get(self, problem: Problem) -> Tile | None:
        """The winner, if the problem was tuned here before."""
        found = self.known.get(self.key(problem))
        return None if found is None else tile_from(found["tile"])

    def put(self, problem: Problem, rows: Sequence[dict[str, Any]]) -> None:
        """Keeps the fastest correct candidate and the five best rows."""
        self.known[self.key(problem)] = {**rows[0], "best": list(rows[:6])}
        self.path.write_text(json.dumps(self.known, indent=1))


def tile_from(fields: dict[str, Any]) -> Tile:
    """A tile from its JSON."""
    a, b, c = fields["shape"]
    return replace(Tile(**{**fields, "shape": (0, 0, 0)}), shape=(a, b, c))


def tune(problem: Problem, tiles: Sequence[Tile] | None = None) -> list[dict[str, Any]]:
    """Times all candidates: rows {tile, ms, error}, correct ones only, fastest first."""
    bench = Bench.make(problem)
    rows = []
    for tile in tiles or candidates(problem):
        try:
            launch, written = bench.launcher(tile)
            launch()
            torch.cuda.synchronize()
            error = bench.check(written)
            if not error < TOLERANCE:
                print("wrong:", problem, tile, error)  # noqa: T201
                continue
            first = written.clone()
            ms = time_ms(launch)
            if not torch.equal(first, written):  # sums are added in a fixed order: other bits are a race
                print("moves:", problem, tile)  # noqa: T201
                continue
            rows.append({"tile": asdict(tile), "ms": ms, "error": error})
        except _failures() as failed:
            text = str(failed)[:60].replace("\n", " ")
            print("drops out:", problem.channels, problem.co, tile, type(failed).__name__, text)  # noqa: T201
    return sorted(rows, key=lambda r: float(r["ms"]))
