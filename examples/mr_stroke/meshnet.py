"""MeshNet-26 as its published weights define it, in PyTorch (needs the extra `torch`)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

DILATIONS = (1, 2, 4, 8, 16, 16, 8, 4, 2)
CHANNELS = 26


class Block(nn.Module):
    """Dilated convolution, batch norm, ReLU; the names are those of the checkpoint's keys."""

    def __init__(self, channels_in: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, CHANNELS, 3, padding=dilation, dilation=dilation)
        self.bn = nn.BatchNorm3d(CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c, i, j, k) → (n, 26, i, j, k)."""
        return torch.relu(self.bn(self.conv(x)))


class MeshNet(nn.Module):
    """Nine dilated blocks and a 1×1×1 head: (n, 1, i, j, k) → logits (n, 2, i, j, k)."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Block(1 if i == 0 else CHANNELS, dilation) for i, dilation in enumerate(DILATIONS)]
        self.network = nn.ModuleList([*blocks, nn.Conv3d(CHANNELS, 2, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whole volume in RAS order, intensities scaled to [0, 1]."""
        for layer in self.network:
            x = layer(x)
        return x


def load(checkpoint: Path) -> MeshNet:
    """Reads the weights without executing pickled code; a key too many or too few is an error."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model_state_dict"]
    network = MeshNet()
    network.load_state_dict(state)
    return network.eval()
