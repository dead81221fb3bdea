"""Writes a checkpoint's averaged network as ONNX, batch normalisation folded, and checks it against PyTorch.

``python training/export.py --weights runs/2/weights.pt --out model.onnx``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from network import WINDOW, Block, NoduleNet, Unit
from onnx import TensorProto, helper, numpy_helper
from torch import nn

OPSET = 17
TOLERANCE = 1e-4
"""Largest difference of logits, relative to their largest magnitude: float32 sums in another order stay far below."""


class Writer:
    """Collects nodes and weights; every method gives the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        """Adds a node whose only output is called ``name``."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{name}:{kind}", **attributes))
        return name

    def weight(self, name: str, value: np.ndarray) -> str:
        """Adds a float32 weight."""
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def unit(self, unit: Unit, x: str, name: str) -> str:
        """A convolution with its normalisation folded: w' = w g / s, b' = b - m g / s, s = sqrt(var + eps)."""
        norm = unit.norm
        assert norm.running_var is not None and norm.running_mean is not None
        gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        kernel = unit.conv.weight.double() * gain[:, None, None, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * gain
        inputs = [x, self.weight(f"{name}.weight", kernel.numpy()), self.weight(f"{name}.bias", bias.numpy())]
        pads = [int(p) for p in unit.conv.padding] * 2
        shape = {"kernel_shape": list(unit.conv.kernel_size), "strides": list(unit.conv.stride), "pads": pads}
        out = self.node("Conv", inputs, f"{name}.conv", **shape)
        return self.node("Relu", [out], f"{name}.relu") if unit.active else out

    def block(self, block: Block, x: str, name: str) -> str:
        """Two convolutions around a shortcut."""
        y = self.unit(block.second, self.unit(block.first, x, f"{name}.first"), f"{name}.second")
        return self.node("Relu", [self.node("Add", [y, x], f"{name}.sum")], f"{name}.out")

    def plain(self, layer: nn.Conv3d | nn.ConvTranspose3d, x: str, name: str, kind: str) -> str:
        """A layer with a bias and no normalisation."""
        assert layer.bias is not None
        inputs = [
            x,
            self.weight(f"{name}.weight", layer.weight.numpy()),
            self.weight(f"{name}.bias", layer.bias.numpy()),
        ]
        shape = {"kernel_shape": list(layer.kernel_size), "strides": list(layer.stride)}
        return self.node(kind, inputs, name, **shape)


@torch.no_grad()
def build(net: NoduleNet, free: bool = False) -> onnx.ModelProto:
    """The network as an ONNX model; ``free`` leaves depth, height and width open (multiples of 16)."""
    w = Writer()
    x = w.unit(net.stem, "image", "stem")
    skips = []
    for level, (down, block) in enumerate(zip(net.down, net.encode, strict=True)):
        skips.append(x)
        x = w.block(block, w.unit(down, x, f"down{level}"), f"encode{level}")  # type: ignore[arg-type]
    for level, rise in enumerate(net.rise):
        name = f"rise{level}"
        up = w.plain(rise.up, x, f"{name}.up", "ConvTranspose")  # type: ignore[arg-type]
        x = w.unit(rise.mix, w.node("Concat", [up, skips.pop()], f"{name}.join", axis=1), f"{name}.mix")  # type: ignore[arg-type]
        if isinstance(rise.after, Unit):
            x = w.unit(rise.after, x, f"{name}.after")
    w.plain(net.head, x, "logits", "Conv")
    size: list[str | int] = ["depth", "height", "width"] if free else list(WINDOW)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 1, *size]) for n in ("image", "logits")]
    graph = helper.make_graph(w.nodes, "lung-nodule", ends[:1], ends[1:], w.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="wetread")
    model.ir_version = 9
    onnx.checker.check_model(model, full_check=True)
    return model


def difference(model: Path, net: NoduleNet) -> float:
    """Largest difference between ONNX Runtime's and PyTorch's logits over PyTorch's largest, on random input."""
    import onnxruntime

    image = np.random.default_rng(0).random((2, 1, *WINDOW), np.float32)
    image[:, :, :, 40:90, 30:80] *= 0.1
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    got = session.run(None, {"image": image})[0]
    with torch.no_grad():
        want = net(torch.from_numpy(image)).numpy()
    return float(np.abs(got - want).max() / np.abs(want).max())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--free", action="store_true", help="leave depth, height and width open")
    options = parser.parse_args()
    net = NoduleNet().eval()
    net.load_state_dict(torch.load(options.weights, map_location="cpu", weights_only=True)["average"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(build(net, options.free), options.out)
    gap = difference(options.out, net)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB, differs from PyTorch by {gap:.1e}")
    if not gap < TOLERANCE:
        raise SystemExit(f"expected a difference under {TOLERANCE}")


if __name__ == "__main__":
    main()
