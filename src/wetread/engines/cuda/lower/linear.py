"""Products by constant matrices, with what stands before and after them.

A linear layer takes over what follows it (bias, residual, activation, rounding to eight bits) and the LayerNorm before
it. Neighbours side by side as features are read from their map.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.engines.cuda.lower.lowering import Lowering
from wetread.engines.cuda.program import Json
from wetread.graph.plain import Operation

_EIGHT = ("int8", "float8_e4m3fn")
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
        inverse: 1 / scale of an 8-bit result; 1 without one.
        dtype: of an 8-bit result; None without one.
    """

    value: str
    nodes: list[Operation] = field(default_factory=list)
    bias: NDArray[Any] | None = None
    residual: str = ""
    activation: dict[str, Json] | None = None
    inverse: float = 1.0
    dtype: str | None = None


def sole_reader(low: Lowering, value: str) -> Operation | None:
    """The only node that reads a value; None where there are others or the network returns it."""
    readers = low.readers(value)
    return readers[0] if len(readers) == 1 and not low.is_output(value) else None


def tail_of(low: Lowering, value: str, *, residual: bool = True, bias: bool = True) -> Tail:
    """Follows a product's result through bias, residual and activation, as far as one node reads it."""
    tail = Tail(value)
    width = low.shape(value)[-1]
    while tail.dtype is None:
        node = sole_reader(low, tail.value)
        if node is None:
            break
        activation, scale = activation_of(node), rounding_of(low, node)
        if scale is not None:
            tail.inverse, tail.dtype = 1.0 / scale, low.graph_dtype(node.outputs[0])
        elif tail.activation is not None:
            break
        elif activation is not None:
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


def rounding_of(low: Lowering, node: Operation) -> float | None:
    """The scale of a node that rounds to eight bits as own kernels do; None where it is none."""
    if node.operator != "QuantizeLinear" or low.graph_dtype(node.outputs[0]) not in _EIGHT:
        return None
    zero = low.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    scale = low.scalar(node.inputs[1])
    if scale is None or scale <= 0 or (zero is not None and np.any(zero.astype(np.float32))):
        return None
    return scale


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
    matrix = low.weight(f"{node.name}/weight", left.sorted(weight), low.spec(left.tensor).dtype)
    inputs = {"a": left.tensor, "b": matrix}
    vectors = {"bias": tail.bias, "gamma": left.gamma, "beta": left.beta}
    for role, array in vectors.items():
        if array is not None:
            inputs[role] = low.weight(f"{node.name}/{role}", array.reshape(-1), "float32")
    if tail.residual:
        inputs["residual"] = low.value(tail.residual)
    attributes = {
        "contract": left.contract,
        "norm": left.norm,
        "activation": tail.activation,
        "inverse": tail.inverse,
    }
    low.step(
        "matmul", node, inputs, {"y": y}, attributes | rounded(low),
        nodes=(*left.nodes, node.name, *(each.name for each in tail.nodes)),
    )  # fmt: skip
    low.done(*tail.nodes)


def rounded(low: Lowering) -> dict[str, Json]:
    """Whether products may round float32 operands to TF32, as an attribute."""
    return {"tf32": True} if low.program.precision == "tf32" else {}
