"""nnU-Net's standard 3D U-Net (PlainConvUNet as its planner configures it), with random seeded weights."""

from __future__ import annotations

from pathlib import Path

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet

FEATURES = (32, 64, 128, 256, 320, 320)
CLASSES = 3


def standard_unet(features: tuple[int, ...] = FEATURES, seed: int = 0) -> torch.nn.Module:
    """Stages of two 3×3×3 convolutions with InstanceNorm and LeakyReLU, halved by strides of 2; no extra heads.

    He initialisation as in nnU-Net; scale and bias of the norms are drawn about 1 and 0, as after a training,
    so that no pass may take them for the identity.
    """
    torch.manual_seed(seed)
    stages = len(features)
    network = PlainConvUNet(
        1, stages, list(features), torch.nn.Conv3d, 3, [1] + [2] * (stages - 1), 2, CLASSES, 2,
        conv_bias=True, norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=False,
    )  # fmt: skip
    network.apply(PlainConvUNet.initialize)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.InstanceNorm3d):
                module.weight.normal_(1.0, 0.1)
                module.bias.normal_(0.0, 0.1)
    return network.eval()


def export(network: torch.nn.Module, window: tuple[int, int, int], path: Path) -> Path:
    """Writes the network as ONNX for one window, batch 1, by the tracer, without its optimisations of norms."""
    torch.onnx.export(
        network, (torch.rand(1, 1, *window),), str(path), input_names=["image"], output_names=["logits"],
        opset_version=18, dynamo=False,
    )  # fmt: skip
    return path
