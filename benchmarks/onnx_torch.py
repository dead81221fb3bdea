"""Runs an ONNX network in eager PyTorch, so that a peer computes with the very same weights.

Covers the operators of convolutional networks whose batch norms are folded; anything else is refused by name.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional as F


class EagerNetwork(torch.nn.Module):
    """Executes the nodes of an ONNX graph one after another with torch.nn.functional."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        self.nodes = [(n.op_type, list(n.input), list(n.output), _attributes(n)) for n in graph.node]
        self.input, self.output = graph.input[0].name, graph.output[0].name
        self.constants = {
            t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels, ...) → the network's first output."""
        values: dict[str, torch.Tensor] = {**self.constants, self.input: x}
        uses: dict[str, int] = {}
        for _, inputs, _, _ in self.nodes:
            for name in inputs:
                uses[name] = uses.get(name, 0) + 1
        for kind, inputs, outputs, attributes in self.nodes:
            arguments = [values[name] if name else None for name in inputs]
            values[outputs[0]] = _run(kind, arguments, attributes)
            for name in inputs:  # as eager PyTorch would: a tensor lives until its last use
                uses[name] -= 1
                if uses[name] == 0 and name not in self.constants and name != self.output:
                    values.pop(name, None)
        return values[self.output]


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    found = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = torch.from_numpy(numpy_helper.to_array(value).copy())
        found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found


def _run(kind: str, x: list[torch.Tensor | None], a: dict[str, object]) -> torch.Tensor:
    match kind:
        case "Conv":
            pads = a.get("pads", [0] * 6)
            assert pads[:3] == pads[3:], "asymmetric padding"
            bias = x[2] if len(x) > 2 else None
            return F.conv3d(
                x[0], x[1], bias, a.get("strides", 1), pads[:3], a.get("dilations", 1), a.get("group", 1)
            )
        case "ConvTranspose":
            pads = a.get("pads", [0] * 6)
            bias = x[2] if len(x) > 2 else None
            return F.conv_transpose3d(
                x[0], x[1], bias, a.get("strides", 1), pads[:3], a.get("output_padding", 0), a.get("group", 1)
            )
        case "Relu":
            return F.relu(x[0])
        case "LeakyRelu":
            return F.leaky_relu(x[0], a.get("alpha", 0.01))
        case "Add":
            return x[0] + x[1]
        case "Concat":
            return torch.cat(x, a["axis"])
        case "MaxPool":
            return F.max_pool3d(x[0], a["kernel_shape"], a.get("strides"), a.get("pads", [0] * 6)[:3])
        case "Constant":
            return a["value"]
        case "Resize":
            scales = [float(s) for s in x[2]][2:]
            if a.get("mode", "nearest") == "nearest":
                return F.interpolate(x[0], scale_factor=scales, mode="nearest")
            aligned = a.get("coordinate_transformation_mode") == "align_corners"
            return F.interpolate(x[0], scale_factor=scales, mode="trilinear", align_corners=aligned)
        case "Identity":
            return x[0]
    raise NotImplementedError(f"operator {kind} has no eager counterpart here")
