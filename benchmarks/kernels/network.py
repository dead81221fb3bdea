"""nnU-Net's 3D U-Net: as torch modules, and wired by hand from wetread's kernels as a list of steps."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from wetread.kernels import launch, tune, weights
from wetread.kernels.hopper import march
from wetread.kernels.launch import Epilogue, Norm

FEATURES = (32, 64, 128, 256, 320, 320)
REPLICAS = 8


class ConvNorm(nn.Module):
    def __init__(self, c: int, co: int, stride: int = 1, slope: float = 0.01) -> None:
        super().__init__()
        self.conv = nn.Conv3d(c, co, 3, stride, 1)
        self.norm = nn.InstanceNorm3d(co, affine=True)
        self.slope = slope
        nn.init.kaiming_normal_(self.conv.weight, a=0.01)
        nn.init.normal_(self.norm.weight, 1.0, 0.2)  # as trained networks have them
        nn.init.normal_(self.norm.bias, 0.0, 0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.leaky_relu(self.norm(self.conv(x)), self.slope)


class UNet(nn.Module):
    def __init__(self, classes: int = 3, features: tuple[int, ...] = FEATURES, slope: float = 0.01) -> None:
        super().__init__()
        f = features
        self.features = f
        self.down = nn.ModuleList(
            nn.ModuleList(
                [ConvNorm(f[i - 1] if i else 1, f[i], 2 if i else 1, slope), ConvNorm(f[i], f[i], 1, slope)]
            )
            for i in range(len(f))
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(f[i + 1], f[i], 2, 2) for i in range(len(f) - 1))
        self.merge = nn.ModuleList(
            nn.ModuleList([ConvNorm(2 * f[i], f[i], 1, slope), ConvNorm(f[i], f[i], 1, slope)])
            for i in range(len(f) - 1)
        )
        self.head = nn.Conv3d(f[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for first, second in self.down:
            x = second(first(x))
            skips.append(x)
        for i in reversed(range(len(self.up))):
            x = torch.cat((self.up[i](x), skips[i]), 1)
            x = self.merge[i][1](self.merge[i][0](x))
        return self.head(x)


@dataclass
class Step:
    """One launch, with what it must compute and move at least."""

    name: str
    run: Callable[[], None]
    flop: float = 0.0
    bytes: float = 0.0
    kernel: str = ""


@dataclass
class Act:
    """A tensor between steps: ready values (8-bit ones times `scale`), or raw values with a norm to apply."""

    tensor: torch.Tensor
    scale: float = 1.0
    norm: Norm | None = None


@dataclass
class Plan:
    """Steps in order on fixed tensors; `run` may be captured into a CUDA graph."""

    source: torch.Tensor
    result: torch.Tensor
    steps: list[Step] = field(default_factory=list)

    def run(self) -> None:
        for step in self.steps:
            step.run()


def scales_of(model: UNet, x: torch.Tensor) -> dict[str, float]:
    """What one unit of each 8-bit tensor is worth: the 99.99th percentile of |values| / 127, measured on x."""
    found: dict[str, float] = {}

    def hook(name: str) -> Callable[..., None]:
        def see(_m: nn.Module, _i: object, y: torch.Tensor) -> None:
            flat = y.detach().abs().flatten()
            sample = flat[torch.randint(flat.numel(), (1 << 20,), device=flat.device)]
            found[name] = float(sample.float().sort().values[int(sample.numel() * 0.9999)]) / 127

        return see

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules()
               if isinstance(m, (ConvNorm, nn.ConvTranspose3d))]  # fmt: skip
    with torch.no_grad():
        model(x)
    for h in handles:
        h.remove()
    return found


class Wiring:
    """Builds the plan of a U-Net for one size, type and choice of tiles."""

    def __init__(self, model: UNet, size: tuple[int, int, int], batch: int, dtype: torch.dtype,
                 tiles: Callable[[tune.Problem], launch.Tile], scales: dict[str, float],
                 share: tuple[int, int] | None = None, fuse: bool = True) -> None:  # fmt: skip
        self.fuse = fuse
        self.share, self.variants = share, 0  # compile only every share[1]-th variant, from share[0]
        self.model, self.size, self.batch, self.dtype, self.tiles = model, size, batch, dtype, tiles
        self.width = 1 if dtype != torch.float16 else 2
        # float8 holds the same real range as int8 does: 127 units become 448
        self.scales = {k: v * (127 / 448 if dtype == torch.float8_e4m3fn else 1.0) for k, v in scales.items()}
        self.raws: dict[tuple[int, ...], torch.Tensor] = {}
        self.names = {m: n for n, m in model.named_modules()}
        total = sum(m.norm.weight.numel() for m in model.modules() if isinstance(m, ConvNorm))
        self.sums = torch.zeros(total * REPLICAS * batch * 2, dtype=torch.float64, device="cuda")
        self.used = 0
        bordered = torch.zeros(batch, *(s + 2 for s in size), 1, dtype=torch.float16, device="cuda")
        source = bordered[:, 1:-1, 1:-1, 1:-1]
        classes = model.head.weight.shape[0]
        result = torch.empty(batch, classes, *size, dtype=torch.float16, device="cuda")
        self.plan = Plan(source, result)

    def level(self, i: int) -> tuple[int, int, int]:
        a, b, c = (s >> i for s in self.size)
        return a, b, c

    def add(self, name: str, run: Callable[[], None], flop: float, moved: float, kernel: str = "") -> None:
        self.plan.steps.append(Step(name, run, flop, moved, kernel))

    def pick(
        self, name: str, variants: dict[str, Callable[[], None]], flop: float, moved: float, kernel: str
    ) -> None:
        """Adds the fastest of several launches that write the same."""
        if self.share is not None:
            for run in variants.values():
                self.variants += 1
                if self.variants % self.share[1] == self.share[0]:
                    with contextlib.suppress(Exception):
                        run()
            return
        times = {}
        for text, run in variants.items():
            try:
                times[text] = tune.time_ms(run, repeats=5, rounds=5)
            except Exception as error:
                print("drops out:", name, text, type(error).__name__, str(error)[:80])
        best = min(times, key=lambda t: times[t])
        self.add(name, variants[best], flop, moved, f"{kernel} {best}")

    def raw(self, *shape: int, dtype: torch.dtype = torch.float16, key: tuple[int, ...] = ()) -> torch.Tensor:
        """Raw results live until the next step reads them: one buffer for each shape."""
        key = key or shape
        if key not in self.raws:
            self.raws[key] = torch.empty(*shape, dtype=dtype, device="cuda")
        return self.raws[key]

    def fresh(self, *shape: int) -> torch.Tensor:
        """As raw, where the step reads a raw tensor of the same shape: a second buffer."""
        return self.raw(*shape, dtype=torch.float16, key=(*shape, -1))

    def ready(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of ready values; only family pairs wants a voxel at both ends of W."""
        return torch.empty(shape, dtype=dtype, device="cuda")

    def on_load(self, level: int) -> bool:
        """Whether the level's second convolution takes its input raw and normalises it as it loads."""
        f = self.model.features[level]
        voxels = self.level(level)[0] * self.level(level)[1] * self.level(level)[2]
        return self.fuse and voxels > tune.SMALL and march.applies((f,), f, self.dtype, True)

    def new_sums(self, c: int) -> torch.Tensor:
        n = REPLICAS * self.batch * c * 2
        part = self.sums[self.used : self.used + n].view(REPLICAS, self.batch, c, 2)
        self.used += n
        return part

    def inverse(self, name: str) -> float:
        return 1.0 if self.dtype == torch.float16 else 1.0 / self.scales[name]

    def conv_norm(self, inputs: list[Act], module: ConvNorm, level: int, *, raw: bool = False) -> Act:
        """Convolution, norm, activation; with `raw` the norm is left to the consumer."""
        name, stride = self.names[module], module.conv.stride[0]
        size_in, size = self.level(level - 1 if stride == 2 else level), self.level(level)
        co = module.conv.out_channels
        voxels = size[0] * size[1] * size[2] * self.batch
        w, bias = (
            module.conv.weight.detach(),
            None if module.conv.bias is None else module.conv.bias.detach().float(),
        )
        # a constant added to a channel is taken away by its instance norm
        bias = None
        gamma, beta = module.norm.weight.detach().float(), module.norm.bias.detach().float()
        norm = Norm(self.new_sums(co), gamma, beta, module.norm.eps, module.slope)
        x = [a.tensor for a in inputs]
        channels = tuple(t.shape[-1] for t in x)
        flop = 2.0 * voxels * 27 * sum(channels) * co
        if channels[0] < 16:
            y, packed = self.raw(self.batch, *size, co), weights.pack_few(w.half())
            self.pick(f"{name} conv", {f"{r}{' across' * t}": partial(launch.conv_few, x[0], packed, y,
                      Epilogue(bias=bias, sums=norm.sums), rows=r, border=True, across=t)
                      for r in (64, 128, 256) for t in (False, True)}, flop, voxels * (co + 1) * 2,
                      "few")  # fmt: skip
            return self.normalise(name, y, norm, raw)
        scale = None
        if self.dtype != torch.float16:
            each = torch.cat(
                [torch.full((t.shape[-1],), a.scale, device="cuda") for t, a in zip(x, inputs, strict=True)]
            )
            q = weights.quantise(w, each, self.dtype)
            w, scale = q.weight, q.scale
        problem = tune.Problem(
            self.batch, size_in, channels, co, str(self.dtype).removeprefix("torch."), stride
        )
        tile = self.tiles(problem)
        packed_w = tune.pack(w.to(self.dtype), channels, tile)
        text = f"{tile.family}{tile.shape}n{tile.bn}k{tile.bk}w{tile.warps}s{tile.stages}/{tile.splits}"
        if not problem.small and inputs[0].norm is not None:
            y = self.fresh(self.batch, *size, co)
            source, inverse = inputs[0], 1.0 / inputs[0].scale
            act = self.ready((self.batch, *size, channels[0]), self.dtype)
            tile = self.tiles(problem)
            packed_w, bc = tune.pack(w.to(self.dtype), channels, tile), min(64, channels[0])

            def apart() -> None:
                launch.norm_apply(x[0], source.norm, act, inverse=inverse, rows=8192 // bc, warps=8)
                launch.conv3d([act], packed_w, y, tile, Epilogue(scale, sums=norm.sums))

            on_load = partial(launch.conv3d, x, tune.pack(w.to(self.dtype), channels, tune.MARCH), y, tune.MARCH,
                              Epilogue(scale, sums=norm.sums), norm=source.norm, in_inverse=inverse)  # fmt: skip
            self.pick(f"{name} conv", {"norm on load": on_load, f"after a norm, {tile.family}": apart}, flop,
                      voxels * (channels[0] + co) * 2, "march")  # fmt: skip
            return self.normalise(name, y, norm, raw)
        if not problem.small:
            y = self.raw(self.batch, *size, co)
            self.add(f"{name} conv", lambda: launch.conv3d(x, packed_w, y, tile, Epilogue(scale, bias, sums=norm.sums),
                     stride=stride), flop, problem.bytes, text)  # fmt: skip
            return self.normalise(name, y, norm, raw)
        parts = self.raw(tile.splits, self.batch, *size, co, dtype=torch.float32)
        y = parts if tile.splits > 1 else parts[0]
        self.add(f"{name} conv", lambda: launch.conv3d(x, packed_w, y, tile, Epilogue(scale), stride=stride),
                 flop, problem.bytes, text)  # fmt: skip
        out = self.ready((self.batch, *size, co), self.dtype)
        inverse = self.inverse(name)
        variants = {f"c{bc} w{w}": partial(launch.norm_reduce, parts, norm, out, inverse=inverse, bc=bc, warps=w)
                    for bc in (4, 8, 16) for w in (4, 8, 16)}  # fmt: skip
        self.pick(f"{name} norm", variants, 0, voxels * co * (4 * tile.splits + self.width), "norm_reduce")
        return Act(out, 1.0 / inverse)

    def normalise(self, name: str, y: torch.Tensor, norm: Norm, raw: bool) -> Act:
        if raw:
            return Act(y, 1.0 / self.inverse(name), norm)
        out = self.ready((y.shape[0], y.shape[1], y.shape[2], y.shape[3], y.shape[4]), self.dtype)
        inverse = self.inverse(name)
        bc = min(64, y.shape[-1])
        variants = {f"{e} ×{loop} w{w}": partial(launch.norm_apply, y, norm, out, inverse=inverse, rows=e // bc,
                    loop=loop,
                    warps=w) for e, loop, w in ((2048, 1, 4), (4096, 1, 4), (4096, 2, 4), (2048, 4, 4), (8192, 1, 8),
                    (4096, 1, 8))}  # fmt: skip
        self.pick(f"{name} norm", variants, 0, y.numel() * (2 + self.width), "norm_apply")
        return Act(out, 1.0 / inverse)

    def up(self, a: Act, module: nn.ConvTranspose3d, level: int) -> Act:
        name = self.names[module]
        w, bias = module.weight.detach(), module.bias.detach().float()
        c, co = w.shape[:2]
        packed, scale = weights.pack_up(w.half()), None
        if self.dtype != torch.float16:
            q = weights.quantise(w.transpose(0, 1), a.scale, self.dtype)
            packed, scale = weights.pack_up(q.weight.transpose(0, 1)), q.scale
        size = self.level(level)
        out = self.ready((self.batch, *size, co), self.dtype)
        inverse = self.inverse(name)
        bk = 1 << (c - 1).bit_length() if c <= 128 else 64
        variants = {}
        for rows, bn, taps, w in ((128, 64, 4, 4), (128, 64, 4, 8), (128, 64, 1, 4), (64, 64, 4, 4), (64, 64, 1, 4),
                                  (64, 128, 1, 4), (128, 128, 4, 8)):  # fmt: skip
            if bn <= 2 * co:
                tile = launch.Tile("gather", (1, 1, rows), bn, bk, w, 2)
                variants[f"{rows}×{bn} t{taps} w{w}"] = partial(
                    launch.upconv, a.tensor, packed, out, Epilogue(scale, bias, inverse=inverse), norm=a.norm,
                    in_inverse=1.0 / a.scale, tile=tile, taps=taps)  # fmt: skip
        self.pick(name, variants, 2.0 * a.tensor.numel() * 8 * co,
                  a.tensor.numel() * a.tensor.element_size() + out.numel() * self.width, "upconv")  # fmt: skip
        return Act(out, 1.0 / inverse)

    def build(self) -> Plan:
        m, depth = self.model, len(self.model.features)
        self.add("zero sums", self.sums.zero_, 0, self.sums.numel() * 8)
        a = Act(self.plan.source)
        skips = []
        for i in range(depth):
            a = self.conv_norm([a], m.down[i][0], i, raw=self.on_load(i))
            a = self.conv_norm([a], m.down[i][1], i)
            skips.append(a)
        for i in reversed(range(depth - 1)):
            up = self.up(a, m.up[i], i)
            a = self.conv_norm([up, skips[i]], m.merge[i][0], i, raw=self.on_load(i))
            a = self.conv_norm([a], m.merge[i][1], i, raw=True)
        w, b = weights.pack_head(m.head.weight.detach().half()), m.head.bias.detach().float()
        variants = {f"{r} ×{loop}": partial(launch.head, a.tensor, w, b, self.plan.result, norm=a.norm, rows=r,
                    loop=loop)                    for r, loop in ((64, 1), (128, 1), (128, 4), (256, 1))}  # fmt: skip
        self.pick("head", variants, 0, a.tensor.numel() * 2 + self.plan.result.numel() * 2, "head")
        return self.plan
