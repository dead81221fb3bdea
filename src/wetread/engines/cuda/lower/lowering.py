"""The first phase of lowering: each node of a graph becomes a primitive step, or a view, by its handler.

A handler is a function ``handler(lowering, node)``, registered for an operator:

    @handles("Relu")
    def relu(low: Lowering, node: Operation) -> None:
        x = low.value(node.inputs[0])              # tensor (or weight) of the program that holds the value
        y = low.output(node)                       # declares the tensor of the node's output
        low.step("pointwise", node, {"0": x}, {"y": y}, {...})

Functions of the domain ``wetread`` are registered as ``wetread.Gelu``; one without a handler is inlined.

Rules for handlers:

- Nodes come in the graph's order, so the values that a node reads are in the program already, or are constants.
- A step does one thing; the passes that follow (`fuse_*.py`) join steps. A handler that sees more than its own node
  (attention in windows) may still do so: at the *last* node of a pattern, since steps that nothing reads any more
  vanish afterwards; or at the *first*, then it marks the others with `Lowering.done`.
- A value that only names another one (Identity, Cast to a type that the program does not keep) is an `alias`. A value
  that lies in another's memory is a `view`: strides and offset in elements, over the *storage* of the other.
- Tensors have the graph's logical shapes. `output` gives a dense tensor whose axes lie in memory in the order of the
  node's first input (channels last stays channels last, tokens stay row-major), unless strides are given.
- Floating types follow the precision (`Lowering.dtype`): float32 activations of the graph become half types unless the
  graph itself mixes float types. Weights are stored by `Lowering.weight` in the type that the step wants; parameters of
  norms, biases and scales are float32.
- A handler that cannot do what a node asks raises UnsupportedOperatorError by `Lowering.unsupported`, or calls
  `Lowering.fallback`, which makes a ``torch`` step of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from wetread.engines.cuda.program import Json, Program, Shape, Step, TensorSpec, channels_last, row_major
from wetread.errors import EngineError, UnsupportedOperatorError
from wetread.graph.plain import Operation
from wetread.graph.resolve import Resolved

Handler: TypeAlias = "Callable[[Lowering, Operation], None]"

HANDLERS: dict[str, Handler] = {}
"""Handler of each operator; filled by importing the modules with handlers (`lower.handlers`)."""

ACTIVATIONS = {
    "float32": "float32", "tf32": "float32", "float16": "float16", "bfloat16": "bfloat16", "int8": "float16",
    "float8": "float16",
}  # fmt: skip
"""Type that float32 activations of a graph have in each precision."""


def handles(*operators: str) -> Callable[[Handler], Handler]:
    """Registers a handler for these operators."""

    def register(handler: Handler) -> Handler:
        for operator in operators:
            HANDLERS[operator] = handler
        return handler

    return register


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight that the graph keeps in eight bits with zero point 0.

    Attributes:
        values: int8, uint8 or E4M3, in the constant's shape.
        scale: float32, one for each index of `axis`, or one.
        axis: of the scales; -1 where there is one.
    """

    values: NDArray[Any]
    scale: NDArray[Any]
    axis: int


class Lowering:
    """A program being made of a resolved graph.

    Args:
        resolved: the network for one window and batch.
        program: empty, with window, batch and precision.
        where: the network's name in messages.

    Attributes:
        program: what is made; handlers add to it through the methods.
        nodes: the graph's nodes in order.
        opset: version of the standard operators.
        activation: torch's name of the type that float32 activations have.
        mixed: the graph itself holds half types, so its float32 values stay float32.
        stored: weights that the graph keeps in eight bits, by the name of the dequantised constant, and by that of
            the program's weight that `layer_weight` made of it.
    """

    def __init__(self, resolved: Resolved, program: Program, where: str = "network") -> None:
        self.program, self.where = program, where
        self.nodes, self.opset = resolved.nodes, resolved.opset
        self.activation = ACTIVATIONS[program.precision]
        self._constants: dict[str, NDArray[Any]] = dict(resolved.constants)
        self._entries = resolved.tensors
        self.mixed = any(entry.dtype in ("float16", "bfloat16") for entry in self._entries.values())
        self.stored: dict[str, Stored] = {}
        self._layers: dict[str, str] = {}
        self._held: dict[str, str] = {}
        self._done: set[str] = set()
        self._taken: set[str] = set(self._entries) | set(self._constants)
        self._writers = {name: node for node in self.nodes for name in node.outputs if name}
        self._readers: dict[str, list[Operation]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self._readers[name].append(node)

    # what the graph says

    def shape(self, value: str) -> Shape:
        """Shape of a value or constant of the graph."""
        if value in self._constants:
            return tuple(self._constants[value].shape)
        return tuple(int(size or 0) for size in self._entries[value].shape)

    def constant(self, value: str) -> NDArray[Any] | None:
        """A constant's values; None where the value hangs on the network's input, or is no value ("")."""
        return self._constants.get(value)

    def set_constant(self, value: str, array: NDArray[Any]) -> None:
        """Makes a value of the graph a constant, as handlers do that compute one."""
        self._constants[value] = array

    def numbers(self, value: str) -> list[int] | None:
        """A constant list of integers, as shapes and axes are."""
        found = self.constant(value)
        return None if found is None else [int(v) for v in found.reshape(-1)]

    def scalar(self, value: str) -> float | None:
        """A constant of one element; None where it is another value."""
        found = self.constant(value)
        return float(found.reshape(-1)[0]) if found is not None and found.size == 1 else None

    def dtype(self, value: str) -> str:
        """Torch's name of the type that a value of the graph has in the program."""
        array = self._constants.get(value)
        found = str(array.dtype.name) if array is not None else str(self._entries[value].dtype)
        return self.precise(found)

    def precise(self, dtype: str) -> str:
        """What a type of the graph becomes in this precision."""
        if dtype in ("float16", "bfloat16") and self.activation == "float32":
            return "float32"
        if dtype == "float64" or (dtype == "float32" and not self.mixed):
            return self.activation
        return dtype

    def graph_dtype(self, value: str) -> str:
        """Numpy's name of the type that a value has in the graph itself."""
        array = self._constants.get(value)
        return str(array.dtype.name) if array is not None else str(self._entries[value].dtype)

    def writer(self, value: str) -> Operation | None:
        """The node that computes a value."""
        return self._writers.get(value)

    def readers(self, value: str) -> list[Operation]:
        """The nodes that read a value; the network's outputs do not count, see `is_output`."""
        return self._readers.get(value, [])

    def is_output(self, value: str) -> bool:
        """Whether the network returns the value."""
        return value in self.program.outputs

    def done(self, *nodes: Operation) -> None:
        """Marks nodes that need no handler any more: another step computes what they compute."""
        self._done.update(node.name for node in nodes)

    def is_done(self, node: Operation) -> bool:
        """Whether a handler has marked the node."""
        return node.name in self._done

    # what the program gets

    def fresh(self, name: str) -> str:
        """A name that no tensor, weight or step has, made from this one."""
        found, number = name, 1
        while found in self._taken:
            number += 1
            found = f"{name}.{number}"
        self._taken.add(found)
        return found

    def value(self, value: str) -> str:
        """Name of the tensor that holds a value of the graph; a constant becomes a weight of its own type.

        Raises:
            EngineError: nothing has computed it yet.
        """
        if value in self._held:
            return self._held[value]
        if value in self._constants:
            array = self._constants[value]
            dtype = self.dtype(value) if array.dtype.kind == "f" else None
            self._held[value] = self.weight(value, array, dtype)
            return self._held[value]
        raise EngineError(f"value {value!r} is read before a handler has made it", where=self.where)

    def holds(self, value: str) -> bool:
        """Whether a tensor for the value exists already (constants do not count)."""
        return value in self._held

    def spec(self, name: str) -> TensorSpec:
        """Shape, type and strides of a tensor or weight of the program."""
        return self.program.spec(name)

    def weight(self, name: str, array: NDArray[Any] | torch.Tensor, dtype: str | None = None) -> str:
        """Adds a weight (a contiguous copy); returns its name, which is fresh.

        Args:
            name: what it shall be called.
            array: its values.
            dtype: torch's name of the type to store it in; None keeps the array's.
        """
        w = array if isinstance(array, torch.Tensor) else tensor_of(array)
        if dtype is not None:
            w = w.to(getattr(torch, dtype))
        name = self.fresh(f"{name}/weight") if name in self._taken else self.fresh(name)
        self.program.weights[name] = w.contiguous().clone()
        return name

    def layer_weight(self, value: str) -> str:
        """A constant as weight of a layer, in float32 until `types` gives it the type of what it meets.

        Layers that share a constant share the weight. Eight-bit values are found under its name in `stored`.
        """
        if value not in self._layers:
            name = self.weight(f"{value}/layer", self._constants[value], "float32")
            self._layers[value] = name
            if value in self.stored:
                self.stored[name] = self.stored[value]
        return self._layers[value]

    def parameter(self, value: str) -> str:
        """A constant of the graph as float32 vector: biases, scales, parameters of norms."""
        array = self._constants[value]
        return self.weight(f"{value}/float32", array.reshape(-1), "float32")

    def tensor(
        self, name: str, shape: Sequence[int], dtype: str, strides: Sequence[int] | None = None, zeroed: bool = False
    ) -> str:  # fmt: skip
        """Declares a tensor with a storage of its own; returns its name, which is fresh. Row-major by default."""
        name = self.fresh(name)
        strides = row_major(shape) if strides is None else tuple(strides)
        self.program.tensors[name] = TensorSpec(tuple(shape), dtype, tuple(strides), zeroed=zeroed)
        return name

    def output(
        self, node: Operation, number: int = 0, *, dtype: str | None = None, strides: Sequence[int] | None = None
    ) -> str:  # fmt: skip
        """Declares the tensor of one of a node's outputs, which then holds that value.

        Args:
            node: the node.
            number: of the output.
            dtype: torch's name; None takes the value's type in this precision.
            strides: None takes a dense tensor whose axes lie in the order of the node's first input, if that has as
                many axes; else row-major. See `channels_last` for results of convolutions.
        """
        value = node.outputs[number]
        shape = self.shape(value)
        if strides is None:
            first = self._held.get(node.inputs[0]) if node.inputs else None
            strides = self.like(first, shape) if first is not None else row_major(shape)
        name = value if value not in self.program.tensors else self.fresh(value)
        self.program.tensors[name] = TensorSpec(shape, dtype or self.dtype(value), tuple(strides))
        self._held[value] = name
        return name

    def like(self, name: str, shape: Sequence[int]) -> Shape:
        """Strides of a dense tensor of `shape` whose axes lie in memory in the order of another's."""
        spec = self.program.spec(name)
        if len(spec.shape) != len(shape):
            return row_major(shape)
        # axes of one element have no place of their own: they stay where they stand among their neighbours
        order = sorted(range(len(shape)), key=lambda i: (-spec.strides[i], i))
        if 1 in spec.shape and len(shape) == 5 and spec.strides == channels_last(spec.shape):
            return channels_last(shape)
        strides, step = [0] * len(shape), 1
        for axis in reversed(order):
            strides[axis], step = step, step * shape[axis]
        return tuple(strides)

    def view(
        self, of: str, name: str, shape: Sequence[int], strides: Sequence[int], offset: int = 0,
        dtype: str | None = None,
    ) -> str:  # fmt: skip
        """Declares a tensor that lies in another's memory; returns its name, which is fresh.

        Args:
            of: tensor of the program (or itself a view).
            name: what it shall be called.
            shape, strides: of the view, in elements.
            offset: elements from the *first element of `of`*.
            dtype: None keeps the type.
        """
        spec = self.program.tensors[of]
        base = self.program.base(of)
        name = self.fresh(name)
        self.program.tensors[name] = TensorSpec(
            tuple(shape), dtype or spec.dtype, tuple(strides), base, spec.offset + offset
        )
        return name

    def hold(self, value: str, name: str) -> None:
        """Says that a tensor of the program holds a value of the graph (`alias` for what was a node)."""
        self._held[value] = name

    def alias(self, node: Operation, name: str | None = None) -> None:
        """The node's first output is what a tensor of the program holds; by default that of its first input."""
        if name is None and self.constant(node.inputs[0]) is not None:
            self.set_constant(node.outputs[0], self._constants[node.inputs[0]])
            return
        self._held[node.outputs[0]] = name if name is not None else self.value(node.inputs[0])

    def dense(self, name: str, node: Operation) -> str:
        """The tensor itself where it is row-major without gaps; else a row-major copy, made by a step."""
        spec = self.program.spec(name)
        if spec.strides == row_major(spec.shape):
            return name
        made = self.tensor(f"{name}/dense", spec.shape, spec.dtype)
        self.step("copy", node, {"x": name}, {"y": made})
        return made

    def step(
        self, op: str, node: Operation | str, inputs: Mapping[str, str], outputs: Mapping[str, str],
        attributes: Mapping[str, Json] | None = None, nodes: Sequence[str] | None = None,
    ) -> Step:  # fmt: skip
        """Adds a step; it is named after the node.

        Args:
            op: name of the operation.
            node: what it computes, or a name.
            inputs, outputs: tensors and weights of the program by role; a role with an empty name is left out.
            attributes: plain data.
            nodes: names of the graph's nodes that it computes; None takes `node`.
        """
        label = node if isinstance(node, str) else node.name
        names = tuple(nodes) if nodes is not None else (label,)
        step = Step(
            self.fresh_step(label),
            op,
            {role: name for role, name in inputs.items() if name},
            {role: name for role, name in outputs.items() if name},
            dict(attributes or {}),
            names,
        )
        self.program.steps.append(step)
        return step

    def fresh_step(self, label: str) -> str:
        """A name that no step has."""
        taken = {step.name for step in self.program.steps}
        found, number = label, 1
        while found in taken:
            number += 1
            found = f"{label}.{number}"
        return found

    # refusals

    def unsupported(self, node: Operation, why: str) -> UnsupportedOperatorError:
        """The error for a node that cannot be lowered; the caller raises it."""
        return UnsupportedOperatorError(
            f"{node.operator} cannot be run by the cuda engine: {why}",
            where=f"{self.where}: {node.name}",
            todo="run the network on another backend, such as onnxruntime",
        )

    def fallback(self, node: Operation) -> None:
        """Lowers a node by a ``torch`` step.

        Raises:
            UnsupportedOperatorError: torch has no counterpart either; names node and operator.
        """
        import_module("wetread.engines.cuda.lower.simple").fallback(self, node)


def tensor_of(array: NDArray[Any]) -> torch.Tensor:
    """A numpy array as torch tensor, bfloat16 and float8 (ml_dtypes) included; a copy."""
    name = array.dtype.name
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        width = np.uint16 if name == "bfloat16" else np.uint8
        raw = torch.from_numpy(np.array(array, order="C").view(width).copy())
        return raw.view(getattr(torch, name))
    return torch.from_numpy(np.array(array, order="C"))
