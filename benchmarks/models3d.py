"""The networks of the GPU benchmarks, as PyTorch modules and as wetread's graphs; random seeded weights.

MLPerf's trained weights and those of the others cannot be had here. Convolutions are He-initialised, scale and bias of
norms are drawn about 1 and 0, as after a training, so that no pass may take them for the identity.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from wetread.graph import Graph
from wetread.graph.passes import optimise

FEATURES = (32, 64, 128, 256, 320, 320)
Shape3 = tuple[int, int, int]


class Block(nn.Module):
    """Convolution, instance norm, leaky ReLU (slope 0: ReLU)."""

    def __init__(self, c: int, co: int, stride: int, slope: float, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(c, co, 3, stride, 1, bias=bias)
        self.norm = nn.InstanceNorm3d(co, affine=True)
        self.slope = slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        return nn.functional.leaky_relu(y, self.slope) if self.slope else nn.functional.relu(y)


class UNet(nn.Module):
    """Two blocks a level, the first of them halves; transposed convolutions up; concat; 1×1×1 head.

    MLPerf's 3D-UNet has slope 0 and no bias in its blocks, nnU-Net's standard one 0.01 and a bias.
    """

    def __init__(
        self, features: tuple[int, ...] = FEATURES, classes: int = 3, slope: float = 0.0, bias: bool = False
    ) -> None:
        super().__init__()
        f = features
        self.down = nn.ModuleList(
            nn.Sequential(
                Block(f[i - 1] if i else 1, f[i], 2 if i else 1, slope, bias),
                Block(f[i], f[i], 1, slope, bias),
            )
            for i in range(len(f))
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(f[i + 1], f[i], 2, 2) for i in range(len(f) - 1))
        self.merge = nn.ModuleList(
            nn.Sequential(Block(2 * f[i], f[i], 1, slope, bias), Block(f[i], f[i], 1, slope, bias))
            for i in range(len(f) - 1)
        )
        self.head = nn.Conv3d(f[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
        for i in reversed(range(len(self.up))):
            x = self.merge[i](torch.cat((self.up[i](x), skips[i]), 1))
        return self.head(x)


class MeshNet(nn.Module):
    """MeshNet-26: dilated 3×3×3 convolutions of 26 channels, batch norm and ReLU, 1×1×1 head (Fedorov et al., 2017)."""

    def __init__(self, channels: int = 26, classes: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c = 1
        for dilation in (1, 2, 4, 8, 16, 8, 4, 2, 1):
            layers += [nn.Conv3d(c, channels, 3, 1, dilation, dilation), nn.BatchNorm3d(channels), nn.ReLU()]
            c = channels
        self.layers = nn.Sequential(*layers, nn.Conv3d(c, classes, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The module with weights drawn as the page says."""
    torch.manual_seed(seed)
    network = make().eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=0.01)
            norms = (nn.InstanceNorm3d, nn.GroupNorm, nn.BatchNorm3d, nn.LayerNorm)
            if isinstance(module, norms) and module.weight is not None:
                module.weight.normal_(1.0, 0.2)
                module.bias.normal_(0.0, 0.2)
            if isinstance(module, nn.BatchNorm3d):
                module.running_mean.normal_(0.0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return network


@dataclass(frozen=True)
class Model:
    """A network of the benchmarks.

    Attributes:
        name: of its files.
        title: in tables.
        make: its module, with seeded weights.
        window: voxels.
        free: whether the graph takes windows of any size.
    """

    name: str
    title: str
    make: Callable[[], nn.Module]
    window: Shape3
    free: bool = False


def _monai(name: str, **settings: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from monai.networks import nets

        return seeded(lambda: getattr(nets, name)(**settings))

    return make


MLPERF = Model("mlperf", "MLPerf's 3D-UNet", lambda: seeded(UNet), (128, 128, 128), True)
NNUNET = Model(
    "nnunet", "nnU-Net's 3D U-Net", lambda: seeded(lambda: UNet(slope=0.01, bias=True)), (128, 128, 128), True
)
SWINUNETR = Model(
    "swinunetr",
    "SwinUNETR (48)",
    _monai("SwinUNETR", in_channels=1, out_channels=2, feature_size=48),
    (96, 96, 96),
)
SEGRESNET = Model(
    "segresnet", "SegResNet (32)", _monai("SegResNet", init_filters=32, in_channels=1, out_channels=2),
    (128, 128, 128),
)  # fmt: skip
RESNET50 = Model(
    "resnet50", "ResNet-50 3D", _monai("resnet50", spatial_dims=3, n_input_channels=1, num_classes=2),
    (128, 128, 128),
)  # fmt: skip
MESHNET = Model("meshnet", "MeshNet-26", lambda: seeded(MeshNet), (128, 128, 128), True)
MODELS = {m.name: m for m in (MLPERF, NNUNET, SWINUNETR, SEGRESNET, RESNET50, MESHNET)}


def export(model: Model, path: Path, window: Shape3 | None = None) -> Graph:
    """The module as an optimised graph, written to a file; by the tracer, which keeps norms whole."""
    axes = {0: "n", 2: "d", 3: "h", 4: "w"}
    traced = (64, 64, 64) if model.free and window is None else window or model.window  # sizes do not matter
    free = {"image": axes, "logits": axes} if model.free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.make(), (torch.randn(1, 1, *traced),), str(path), opset_version=20, dynamo=False,
            input_names=["image"], output_names=["logits"], dynamic_axes=free,
        )  # fmt: skip
    graph, _ = optimise(Graph.load(path), window=window or model.window, check=False)
    graph.save(path)
    return graph


def synthetic(shape: Shape3, seed: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """A volume [1, D, H, W] in float32 with structure from coarse to fine, about mean 0 and variance 1."""
    g = torch.Generator(device=device).manual_seed(seed)
    total = torch.zeros(1, 1, *shape, device=device)
    for step, share in ((32, 0.7), (8, 0.5), (1, 0.5)):
        size = [max(2, -(-n // step)) for n in shape]
        noise = torch.randn(1, 1, *size, generator=g, device=device)
        total += share * (noise if step == 1 else nn.functional.interpolate(noise, shape, mode="trilinear"))
    return total[0]
