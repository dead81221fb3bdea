"""The network of ``lung-nodule``: a small residual 3D U-Net with a light full-resolution rim.

Input (N, 1, D, H, W) float32 in [0, 1] (HU -600 to 400) at 1 mm, axes toward Superior, Posterior, Left; D, H and
W are multiples of 16. Output: logits of the same shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WINDOW = (64, 128, 128)
HU_RANGE = (-600.0, 400.0)
WIDTHS = (8, 24, 56, 72, 96)


class Unit(nn.Module):
    """Convolution, batch normalisation and, unless told otherwise, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, kernel // 2 if stride == 1 else 0, bias=False)
        self.norm = nn.BatchNorm3d(outputs, momentum=0.03)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.norm(self.conv(x))
        return torch.relu_(x) if self.active else x


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Unit(width, width)
        self.second = Unit(width, width, active=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.relu_(self.second(self.first(x)) + x)


class Rise(nn.Module):
    """Doubles the resolution, joins the encoder's features, mixes."""

    def __init__(self, below: int, width: int, block: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(below, width, 2, 2)
        self.mix = Unit(2 * width, width)
        self.after = Unit(width, width) if block else nn.Identity()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.after(self.mix(torch.cat([self.up(x), skip], 1)))
        return out


class NoduleNet(nn.Module):
    """See the module's docstring."""

    def __init__(self, widths: tuple[int, int, int, int, int] = WIDTHS) -> None:
        super().__init__()
        a, b, c, d, e = widths
        self.stem = Unit(1, a)
        self.down = nn.ModuleList(Unit(i, o, 2, 2) for i, o in ((a, b), (b, c), (c, d), (d, e)))
        self.encode = nn.ModuleList(Block(w) for w in (b, c, d, e))
        self.rise = nn.ModuleList([Rise(e, d, False), Rise(d, c, True), Rise(c, b, True), Rise(b, a, False)])
        self.head = nn.Conv3d(a, 1, 1)
        nn.init.constant_(self.head.bias, -4.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.stem(x)
        skips = []
        for down, block in zip(self.down, self.encode, strict=True):
            skips.append(x)
            x = block(down(x))
        for rise in self.rise:
            x = rise(x, skips.pop())
        out: Tensor = self.head(x)
        return out


def parameters(net: nn.Module) -> int:
    """Number of trained values."""
    return sum(p.numel() for p in net.parameters())
