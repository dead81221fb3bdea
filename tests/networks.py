"""Small ONNX networks with seeded random weights, for tests of every room.

Tests import this as ``from tests.networks import unet``. The builders return `onnx.ModelProto`; `save` writes
one to a file. Weights are scaled so that activations keep about unit variance whatever the depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

FREE = (None, None, None)
OPSET = 18


class Builder:
    """Collects nodes and initialisers; every method returns the name of its output."""

    def __init__(self, seed: int = 0, dtype: type[np.floating] = np.float32) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def name(self, op: str) -> str:
        return f"{op.lower()}_{len(self.nodes)}"

    def constant(self, value: np.ndarray, name: str) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: object) -> str:
        name = self.name(op)
        names = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, **attributes))
        return names[0]

    def conv(
        self, x: str, channels: tuple[int, int], kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> str:
        """3D convolution with bias and 'same' padding; channels is (in, out)."""
        cin, cout = channels
        name = self.name("Conv")
        shape = (cout, cin // groups, kernel, kernel, kernel)
        gain = np.sqrt(2 / np.prod(shape[1:]))
        w = self.constant((self.rng.standard_normal(shape) * gain).astype(self.dtype), f"{name}.weight")
        b = self.constant((self.rng.standard_normal(cout) * 0.1).astype(self.dtype), f"{name}.bias")
        return self.add(
            "Conv",
            [x, w, b],
            kernel_shape=[kernel] * 3,
            strides=[stride] * 3,
            pads=[kernel // 2] * 6,
            group=groups,
        )

    def up(self, x: str, channels: tuple[int, int]) -> str:
        """Transposed convolution that doubles each spatial axis; channels is (in, out)."""
        cin, cout = channels
        name = self.name("ConvTranspose")
        shape = (cin, cout, 2, 2, 2)
        w = self.constant(
            (self.rng.standard_normal(shape) * np.sqrt(1 / cin)).astype(self.dtype), f"{name}.weight"
        )
        return self.add("ConvTranspose", [x, w], kernel_shape=[2] * 3, strides=[2] * 3)

    def norm(self, x: str, channels: int) -> str:
        """Instance normalisation with random scale near one and small bias."""
        name = self.name("InstanceNormalization")
        s = self.constant((1 + 0.1 * self.rng.standard_normal(channels)).astype(self.dtype), f"{name}.scale")
        b = self.constant((0.1 * self.rng.standard_normal(channels)).astype(self.dtype), f"{name}.bias")
        return self.add("InstanceNormalization", [x, s, b], epsilon=1e-5)

    def block(self, x: str, channels: tuple[int, int], stride: int = 1, norm: bool = True) -> str:
        """Convolution, instance normalisation, leaky ReLU."""
        x = self.conv(x, channels, stride=stride)
        if norm:
            x = self.norm(x, channels[1])
        return self.add("LeakyRelu", [x], alpha=0.01)

    def fake(self, x: str, scale: float = 0.03) -> str:
        """Quantise and dequantise nodes, symmetric int8."""
        name = self.name("QuantizeLinear")
        s = self.constant(np.array(scale, self.dtype), f"{name}.scale")
        z = self.constant(np.array(0, np.int8), f"{name}.zero")
        return self.add("DequantizeLinear", [self.add("QuantizeLinear", [x, s, z]), s, z])

    def quantised_weight(self, shape: tuple[int, ...], axis: int = 0) -> str:
        """Random int8 weights with one scale for each index of `axis`, dequantised."""
        name = self.name("DequantizeLinear")
        w = self.rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        scale = np.abs(w).max(axis=tuple(i for i in range(len(shape)) if i != axis), keepdims=True) / 127
        q = self.constant(np.rint(w / scale).astype(np.int8), f"{name}.q")
        s = self.constant(scale.ravel().astype(self.dtype), f"{name}.scale")
        z = self.constant(np.zeros(shape[axis], np.int8), f"{name}.zero")
        return self.add("DequantizeLinear", [q, s, z], axis=axis)

    def model(
        self,
        inputs: dict[str, Sequence[int | str | None]],
        outputs: dict[str, tuple[str, Sequence[int | str | None]]],
        opset: int = OPSET,
    ) -> onnx.ModelProto:
        """Closes the graph; outputs maps a public name to (inner name, shape). None is a free size."""
        element = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))

        def info(name: str, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
            dims = [f"{name}_{i}" if size is None else size for i, size in enumerate(shape)]
            return helper.make_tensor_value_info(name, element, dims)

        renames = {inner: name for name, (inner, _) in outputs.items()}
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [renames.get(n, n) for n in names]
        graph = helper.make_graph(
            self.nodes,
            "test",
            [info(name, shape) for name, shape in inputs.items()],
            [info(name, shape) for name, (_, shape) in outputs.items()],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def unet(
    channels: tuple[int, int] = (1, 2),
    features: Sequence[int] = (8, 16),
    window: Sequence[int | None] = FREE,
    batch: int | None = None,
    norm: bool = True,
    seed: int = 0,
) -> onnx.ModelProto:
    """3D U-Net: input ``image`` (n, channels[0], *window), output ``logits`` (n, channels[1], *window).

    Each spatial size must be a multiple of 2 ** (len(features) - 1). A free size is None.
    """
    b = Builder(seed)
    x = b.block("image", (channels[0], features[0]), norm=norm)
    skips = []
    for below, above in zip(features[1:], features[:-1], strict=True):
        skips.append((x, above))
        x = b.block(b.block(x, (above, below), stride=2, norm=norm), (below, below), norm=norm)
    width = features[-1]
    for skip, above in reversed(skips):
        x = b.add("Concat", [b.up(x, (width, above)), skip], axis=1)
        x, width = b.block(x, (2 * above, above), norm=norm), above
    x = b.conv(x, (width, channels[1]), kernel=1)
    return b.model({"image": (batch, channels[0], *window)}, {"logits": (x, (batch, channels[1], *window))})


def int8_chain(window: Sequence[int | None] = FREE, batch: int | None = None) -> onnx.ModelProto:
    """Two convolutions and a transposed one in int8, with a float32 convolution as head.

    Input ``image`` (n, 1, *window), output ``logits`` (n, 2, *2·window). Nodes are named int8_a, int8_b,
    int8_up and head.
    """
    b = Builder()
    k3 = {"kernel_shape": [3] * 3, "pads": [1] * 6}
    x = b.add("Conv", [b.fake("image"), b.quantised_weight((16, 1, 3, 3, 3))], **k3)
    b.nodes[-1].name = "int8_a"
    x = b.add("LeakyRelu", [b.norm(x, 16)], alpha=0.01)
    x = b.add("Relu", [b.add("Conv", [b.fake(x), b.quantised_weight((16, 16, 3, 3, 3))], **k3)])
    b.nodes[-2].name = "int8_b"
    x = b.add("ConvTranspose", [b.fake(x), b.quantised_weight((16, 8, 2, 2, 2), axis=1)],
              kernel_shape=[2] * 3, strides=[2] * 3)  # fmt: skip
    b.nodes[-1].name = "int8_up"
    x = b.conv(b.norm(x, 8), (8, 2), kernel=1)
    b.nodes[-1].name = "head"
    grown = tuple(None if size is None else 2 * size for size in window)
    return b.model({"image": (batch, 1, *window)}, {"logits": (x, (batch, 2, *grown))})


def threshold(cut: float = 0.5, gain: float = 20.0, window: Sequence[int | None] = FREE) -> onnx.ModelProto:
    """Two output channels, 0 and gain·(image − cut): softmax marks the voxels above the cut, exactly."""
    b = Builder()
    w = b.constant(np.array([0.0, gain], np.float32).reshape(2, 1, 1, 1, 1), "weight")
    c = b.constant(np.array([0.0, -gain * cut], np.float32), "bias")
    x = b.add("Conv", ["image", w, c], kernel_shape=[1, 1, 1])
    return b.model({"image": (None, 1, *window)}, {"logits": (x, (None, 2, *window))})


def classifier(
    channels: tuple[int, int] = (1, 3),
    window: Sequence[int | None] = FREE,
    *,
    maps: bool = False,
    gain: float = 4.0,
    seed: int = 0,
) -> onnx.ModelProto:
    """Input ``image`` (n, channels[0], *window), output ``scores`` (n, classes); two convolutions, pooling, Gemm.

    With ``maps`` the last layer is a convolution and the output (n, classes, 1, 1, 1).
    """
    b = Builder(seed)
    x = b.add("Relu", [b.conv("image", (channels[0], 8), stride=2)])
    x = b.add("GlobalAveragePool", [b.add("Relu", [b.conv(x, (8, 8), stride=2)])])
    shape: tuple[int | None, ...]
    if maps:
        x, shape = b.conv(x, (8, channels[1]), kernel=1), (None, channels[1], 1, 1, 1)
    else:
        w = b.constant((gain * b.rng.standard_normal((channels[1], 8))).astype(np.float32), "head.weight")
        c = b.constant((0.1 * b.rng.standard_normal(channels[1])).astype(np.float32), "head.bias")
        x, shape = b.add("Gemm", [b.add("Flatten", [x]), w, c], transB=1), (None, channels[1])
    return b.model({"image": (None, channels[0], *window)}, {"scores": (x, shape)})


def planes() -> onnx.ModelProto:
    """Returns (n, 1, i, j): the mean over the last axis, neither a map of voxels nor scores."""
    b = Builder()
    axis = b.constant(np.array([4]), "axis")
    x = b.add("ReduceMean", ["image", axis], keepdims=0)
    return b.model({"image": (None, 1, *FREE)}, {"mean": (x, (None, 1, None, None))})


def poison() -> onnx.ModelProto:
    """Returns log(image): NaN wherever the input is negative, minus infinity at zero."""
    b = Builder()
    x = b.add("Log", ["image"])
    return b.model({"image": (None, 1, *FREE)}, {"logits": (x, (None, 1, *FREE))})


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Writes the model and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path
