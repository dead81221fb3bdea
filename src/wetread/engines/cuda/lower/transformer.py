"""Handlers of linear layers, LayerNorm, softmax and attention.

A linear layer takes over what follows it (bias, residual, activation) and the LayerNorm before it. The merging of
patches (neighbours side by side as features) and patch embeddings (convolutions whose stride is their kernel) are
linear layers on views. Attention in windows of a map is lowered as a whole, see `windows`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.engines.cuda.lower import convolutions
from wetread.engines.cuda.lower.lowering import Lowering, handles
from wetread.engines.cuda.program import Json, Shape, channels_last, row_major
from wetread.graph.plain import Operation

_PLAIN = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "wetread.Swish": "silu",
    "wetread.Mish": "mish",
}


def activation_of(node: Operation) -> dict[str, Json] | None:
    """The activation that a node is, as `operations.base.activate` names it; None where it is none."""
    if node.operator in _PLAIN:
        return {"name": _PLAIN[node.operator]}
    if node.operator == "LeakyRelu":
        return {"name": "leaky", "slope": float(node.attributes.get("alpha", 0.01))}
    if node.operator in ("Gelu", "wetread.Gelu", "wetread.GeluTanh"):
        tanh = node.operator == "wetread.GeluTanh" or node.attributes.get("approximate") == "tanh"
        return {"name": "gelu", "approximate": "tanh" if tanh else "none"}
    return None


@dataclass
class Tail:
    """What follows a product and is computed with it.

    Attributes:
        value: of the graph, that the last of it gives.
        nodes: in order.
        bias: constant [N]; None without one.
        residual: value of the graph that is added; empty without one.
        activation: see `operations.base.activate`.
    """

    value: str
    nodes: list[Operation] = field(default_factory=list)
    bias: NDArray[Any] | None = None
    residual: str = ""
    activation: dict[str, Json] | None = None


def sole_reader(low: Lowering, value: str) -> Operation | None:
    """The only node that reads a value; None where there are others or the network returns it."""
    readers = low.readers(value)
    return readers[0] if len(readers) == 1 and not low.is_output(value) else None


def tail_of(low: Lowering, value: str, *, residual: bool = True, bias: bool = True) -> Tail:
    """Follows a product's result through bias, residual and activation, as far as one node reads it."""
    tail = Tail(value)
    width = low.shape(value)[-1]
    while tail.activation is None:
        node = sole_reader(low, tail.value)
        if node is None:
            break
        activation = activation_of(node)
        if activation is not None:
            tail.activation = activation
        elif node.operator == "Add" and set(node.inputs) != {tail.value}:
            other = node.inputs[0] if node.inputs[1] == tail.value else node.inputs[1]
            array = low.constant(other)
            plain = not tail.residual and tail.bias is None and bias
            if plain and array is not None and array.shape[-1:] == (width,) and array.size == width:
                tail.bias = array.reshape(-1)
            elif residual and not tail.residual and low.holds(other) and low.shape(other) == low.shape(value):
                tail.residual = other
            else:
                break
        else:
            break
        tail.nodes.append(node)
        tail.value = node.outputs[0]
    return tail


@dataclass(frozen=True)
class Core:
    """What a call of attention adds to its scores.

    Attributes:
        scale: of the scores.
        bias: (1 or B, 1 or heads, Tq, Tk).
        regions: (windows, T), see `operations.attention`.
        mask: (windows, Tq, Tk), where it is no matter of regions.
        apart: added between regions.
    """

    scale: float
    bias: NDArray[Any] | None = None
    regions: NDArray[Any] | None = None
    mask: NDArray[Any] | None = None
    apart: float = 0.0

    @classmethod
    def of(cls, low: Lowering, node: Operation) -> Core | None:
        """From a call; None where scale, bias or mask are computed."""
        scale = low.scalar(node.inputs[3])
        bias = low.constant(node.inputs[4]) if len(node.inputs) > 4 else None
        mask = low.constant(node.inputs[5]) if len(node.inputs) > 5 else None
        given = node.inputs[4:6]
        if scale is None or any(low.constant(name) is None for name in given):
            return None
        if mask is None:
            return cls(scale, bias)
        mask = mask.reshape(-1, *mask.shape[-2:])
        found = regions_of(mask)
        if found is None:
            return cls(scale, bias, mask=mask)
        return cls(scale, bias, regions=found[0], apart=found[1])

    def weights(self, low: Lowering, name: str, dtype: str) -> dict[str, str]:
        """Adds bias, regions and mask as weights; their names by role."""
        found = {}
        if self.bias is not None:
            bias = self.bias.reshape((1,) * (4 - self.bias.ndim) + self.bias.shape)
            found["bias"] = low.weight(f"{name}/bias", bias, dtype)
        if self.regions is not None:
            found["regions"] = low.weight(f"{name}/regions", self.regions)
        if self.mask is not None:
            found["mask"] = low.weight(f"{name}/mask", self.mask, dtype)
        return found


def regions_of(mask: NDArray[Any]) -> tuple[NDArray[np.int32], float] | None:
    """Regions (windows, T) of a mask that is 0 inside and one value between them; that value.

    Args:
        mask: (windows, T, T).
    """
    if mask.shape[1] != mask.shape[2]:
        return None
    open_ = mask == 0
    first = open_.argmax(-1).astype(np.int32)  # the first token of its region
    if not np.array_equal(open_, first[:, :, None] == first[:, None, :]):
        return None
    apart = float(mask.min())
    if not np.array_equal(mask, np.where(open_, 0, mask.dtype.type(apart))):
        return None
    return first, apart


@dataclass
class Left:
    """The left side of a product: a tensor with its contracted axes last, and the norm before it.

    Attributes:
        tensor: of the program.
        contract: how many last axes are contracted.
        order: blocks of features as the weight has them, in the order in which the view reads them; empty: as is.
        norm: {eps} or None.
        gamma, beta: constants of the norm.
        nodes: names of the nodes that it stands for.
    """

    tensor: str
    contract: int = 1
    order: tuple[int, ...] = ()
    norm: dict[str, Json] | None = None
    gamma: NDArray[Any] | None = None
    beta: NDArray[Any] | None = None
    nodes: tuple[str, ...] = ()

    def sorted(self, array: NDArray[Any]) -> NDArray[Any]:
        """A constant whose first axis counts features, in the order of the view."""
        if not self.order:
            return array
        blocks = array.reshape(len(self.order), -1, *array.shape[1:])
        return blocks[list(self.order)].reshape(array.shape)


def left_of(low: Lowering, value: str) -> Left:
    """What a product may read instead of a value: the LayerNorm's input, the map instead of merged patches."""
    norm = low.writer(value)
    folded = (
        norm is not None and norm.operator == "LayerNormalization" and sole_reader(low, value) is not None
    )
    inner = value
    if folded:
        assert norm is not None
        rank = len(low.shape(value))
        constants = [low.constant(name) for name in norm.inputs[1:] if name]
        last = int(norm.attributes.get("axis", -1)) % rank == rank - 1
        folded = last and all(c is not None for c in constants) and low.holds(norm.inputs[0])
        inner = norm.inputs[0] if folded else value
    merged = _merged(low, inner) if sole_reader(low, inner) is not None else None
    left = merged or Left(low.value(inner))
    if folded and norm is not None:
        left.norm = {"eps": float(norm.attributes.get("epsilon", 1e-5))}
        left.gamma = left.sorted(np.asarray(low.constant(norm.inputs[1])).reshape(-1))
        if len(norm.inputs) > 2 and norm.inputs[2]:
            left.beta = left.sorted(np.asarray(low.constant(norm.inputs[2])).reshape(-1))
        left.nodes = (*left.nodes, norm.name)
    return left


def _merged(low: Lowering, value: str) -> Left | None:
    """A concat along features of strided neighbours in one map, as a view of the map."""
    node = low.writer(value)
    if node is None or node.operator != "Concat":
        return None
    rank = len(low.shape(value))
    count = len(node.inputs)
    if int(node.attributes["axis"]) % rank != rank - 1 or count & (count - 1) or count < 2:
        return None
    if not all(low.holds(name) for name in node.inputs):
        return None
    names = [low.value(name) for name in node.inputs]
    specs = [low.spec(name) for name in names]
    if len({(low.program.base(n), s.shape, s.strides) for n, s in zip(names, specs, strict=True)}) != 1:
        return None
    offsets = [spec.offset for spec in specs]
    steps = _steps(offsets)
    if steps is None:
        return None
    order = sorted(range(count), key=lambda i: offsets[i])
    shape, strides = specs[0].shape, specs[0].strides
    view = low.view(
        names[order[0]], f"{value}/patches", (*shape[:-1], *([2] * len(steps)), shape[-1]),
        (*strides[:-1], *steps, strides[-1]),
    )  # fmt: skip
    return Left(view, 1 + len(steps), tuple(order), nodes=(node.name,))


def _steps(offsets: Sequence[int]) -> list[int] | None:
    """Steps, largest first, of which the offsets are all sums of subsets; None where they are not."""
    if len(set(offsets)) != len(offsets):
        return None
    ordered = sorted(offset - min(offsets) for offset in offsets)
    steps = [ordered[1 << i] for i in range(len(offsets).bit_length() - 1)][::-1]
    sums = [sum(step for step, taken in zip(steps, chosen, strict=True) if taken)
            for chosen in itertools.product((0, 1), repeat=len(steps))]  # fmt: skip
    return steps if sums == ordered else None


def linear(low: Lowering, node: Operation, left: Left, weight: NDArray[Any], tail: Tail, y: str) -> None:
    """Adds the step of a linear layer.

    Args:
        low: the lowering.
        node: the product.
        left: what it multiplies.
        weight: [K, N], features as the graph has them.
        tail: what follows.
        y: tensor of the result, (rows..., N).
    """
    dtype = low.spec(left.tensor).dtype
    inputs = {"a": left.tensor, "b": low.weight(f"{node.name}/weight", left.sorted(weight), dtype)}
    vectors = {"bias": tail.bias, "gamma": left.gamma, "beta": left.beta}
    for role, array in vectors.items():
        if array is not None:
            inputs[role] = low.weight(f"{node.name}/{role}", array.reshape(-1), "float32")
    if tail.residual:
        inputs["residual"] = low.value(tail.residual)
    low.step(
        "matmul", node, inputs, {"y": y},
        {"contract": left.contract, "norm": left.norm, "activation": tail.activation, "inverse": 1.0},
        nodes=(*left.nodes, node.name, *(each.name for each in tail.nodes)),
    )  # fmt: skip
    low.done(*tail.nodes)


@handles("MatMul")
def matmul(low: Lowering, node: Operation) -> None:
    """A linear layer where the right side is a constant matrix; else a product of tensors."""
    a, b = node.inputs
    weight = low.constant(b)
    rank = len(low.shape(a))
    if weight is not None and low.constant(a) is None and _is_matrix(weight) and rank >= max(2, weight.ndim):
        tail = tail_of(low, node.outputs[0])
        y = _declare(low, node, tail)
        linear(low, node, left_of(low, a), weight.reshape(weight.shape[-2:]), tail, y)
        return
    if min(len(low.shape(a)), len(low.shape(b))) < 2:
        low.fallback(node)
        return
    low.step("matmul", node, {"a": low.value(a), "b": low.value(b)}, {"y": low.output(node)}, {"contract": 1})


def _is_matrix(array: NDArray[Any]) -> bool:
    return array.ndim >= 2 and array.size == array.shape[-1] * array.shape[-2]


def _declare(low: Lowering, node: Operation, tail: Tail, strides: Shape | None = None) -> str:
    """The row-major tensor of what the last node of a tail gives."""
    last = tail.nodes[-1] if tail.nodes else node
    return low.output(last, strides=row_major(low.shape(last.outputs[0])) if strides is None else strides)


@handles("Gemm")
def gemm(low: Lowering, node: Operation) -> None:
    """A linear layer: alpha · A' · B' + beta · C, with constants B and C."""
    weight = low.constant(node.inputs[1])
    bias = low.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    extra = len(node.inputs) > 2 and bool(node.inputs[2]) and bias is None
    get = node.attributes.get
    if weight is None or extra or get("transA", 0) or low.constant(node.inputs[0]) is not None:
        low.fallback(node)
        return
    weight = (weight.T if get("transB", 0) else weight) * np.asarray(get("alpha", 1.0), weight.dtype)
    width = weight.shape[1]
    if bias is not None and bias.size not in (1, width):
        low.fallback(node)
        return
    tail = tail_of(low, node.outputs[0], bias=bias is None)
    if bias is not None:
        tail.bias = np.broadcast_to(bias.reshape(-1) * np.asarray(get("beta", 1.0), bias.dtype), (width,))
    y = _declare(low, node, tail)
    linear(low, node, left_of(low, node.inputs[0]), weight, tail, y)


@handles("LayerNormalization")
def layer_norm(low: Lowering, node: Operation) -> None:
    """LayerNorm over the last axes; outputs of mean and deviation are left to torch."""
    if any(node.outputs[1:]) or any(low.constant(name) is None for name in node.inputs[1:] if name):
        low.fallback(node)
        return
    rank = len(low.shape(node.inputs[0]))
    axes = rank - int(node.attributes.get("axis", -1)) % rank
    inputs = {"x": low.value(node.inputs[0])}
    for role, name in zip(("gamma", "beta"), node.inputs[1:], strict=False):
        if name:
            inputs[role] = low.weight(f"{node.name}/{role}", np.asarray(low.constant(name)), "float32")
    attributes = {"axes": axes, "eps": float(node.attributes.get("epsilon", 1e-5)), "inverse": 1.0}
    low.step("layer_norm", node, inputs, {"y": low.output(node)}, attributes)


@handles("wetread.Attention", "wetread.WindowAttention", "wetread.ShiftedWindowAttention")
def attention(low: Lowering, node: Operation) -> None:
    """Attention of heads that are there already; the result has tokens before heads in memory."""
    core = Core.of(low, node)
    if core is None:
        low.fallback(node)
        return
    q = low.value(node.inputs[0])
    _, heads, tokens, features = low.spec(q).shape
    y = low.output(node, strides=(tokens * heads * features, features, heads * features, 1))
    inputs = {"q": q, "k": low.value(node.inputs[1]), "v": low.value(node.inputs[2])}
    inputs |= core.weights(low, node.name, low.spec(q).dtype)
    low.step("attention", node, inputs, {"y": y}, {"scale": core.scale, "windows": None, "apart": core.apart})


@handles("Softmax", "LogSoftmax")
def softmax(low: Lowering, node: Operation) -> None:
    """Softmax along an axis; before operator set 13 along all axes from one on, which is left to torch."""
    rank = len(low.shape(node.inputs[0]))
    axis = int(node.attributes.get("axis", -1 if low.opset >= 13 else 1)) % rank
    if low.opset < 13 and axis != rank - 1:
        low.fallback(node)
        return
    attributes = {"axis": axis, "log": node.operator == "LogSoftmax"}
    low.step("softmax", node, {"x": low.value(node.inputs[0])}, {"y": low.output(node)}, attributes)


@handles("Conv")
def patch_embedding(low: Lowering, node: Operation) -> None:
    """A convolution whose stride is its kernel, as a linear layer on patches; others go on to their handler."""
    if not _is_embedding(low, node):
        convolutions.conv(low, node)
        return
    weight = np.asarray(low.constant(node.inputs[1]))
    bias = np.asarray(low.constant(node.inputs[2])) if len(node.inputs) > 2 and node.inputs[2] else None
    x = low.value(node.inputs[0])
    spec, kernel = low.spec(x), weight.shape[2:]
    n, c = spec.shape[:2]
    y = low.output(node, strides=channels_last(low.shape(node.outputs[0])))
    out = low.spec(y)
    strides = (spec.strides[0], *(s * k for s, k in zip(spec.strides[2:], kernel, strict=True)))
    patches = low.view(
        x,
        f"{node.name}/patches",
        (n, *out.shape[2:], *kernel, c),
        (*strides, *spec.strides[2:], spec.strides[1]),
    )
    rows = low.view(
        y,
        f"{node.name}/rows",
        (n, *out.shape[2:], out.shape[1]),
        (out.strides[0], *out.strides[2:], out.strides[1]),
    )
    matrix = np.moveaxis(weight, (0, 1), (-1, -2)).reshape(-1, weight.shape[0])
    linear(low, node, Left(patches, 1 + len(kernel)), matrix, Tail(node.outputs[0], bias=bias), rows)


def _is_embedding(low: Lowering, node: Operation) -> bool:
    """Whether a convolution has a stride like its kernel, and nothing after it that convolutions fuse better."""
    weight = low.constant(node.inputs[1])
    biases = [low.constant(name) for name in node.inputs[2:] if name]
    if weight is None or weight.ndim != 5 or any(b is None for b in biases):
        return False
    kernel, get = list(weight.shape[2:]), node.attributes.get
    if list(get("strides", [1, 1, 1])) != kernel or kernel == [1, 1, 1] or int(get("group", 1)) != 1:
        return False
    if any(get("pads", ())) or any(d != 1 for d in get("dilations", ())):
        return False
    if get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or low.constant(node.inputs[0]) is not None:
        return False
    norms = (
        "InstanceNormalization",
        "GroupNormalization",
        "wetread.GroupNormalization",
        "BatchNormalization",
        "Relu",
        "LeakyRelu",
        "PRelu",
    )
    readers = low.readers(node.outputs[0])
    held = low.spec(low.value(node.inputs[0])).dtype in ("float16", "bfloat16", "float32")
    quantised = node.inputs[1] in low.stored or any(r.operator == "QuantizeLinear" for r in readers)
    return held and not quantised and not any(r.operator in norms for r in readers)
