"""The torch step of a node: for operators without a kernel, listed in docs/cuda-operators.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.engines.cuda.lower.lowering import Lowering
from wetread.engines.cuda.operations.fallback import OPERATORS
from wetread.engines.cuda.operations.fallback.registry import Operator
from wetread.engines.cuda.program import Json
from wetread.errors import UnsupportedOperatorError
from wetread.graph.plain import Operation

Constant = Callable[[str], NDArray[Any] | None]


def plain(value: Any) -> Json:
    """An attribute as plain data; a tensor as its flat values, shape and type."""
    if isinstance(value, np.ndarray):
        return {
            "value": value.reshape(-1).tolist(),
            "shape": list(value.shape),
            "dtype": str(value.dtype.name),
        }
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def describe(node: Operation, opset: int, constant: Constant) -> tuple[Mapping[str, Json], Mapping[str, str]]:
    """Attributes of the torch step of a node, and the node's values that are its inputs, by role.

    Args:
        node: the node.
        opset: version of the standard operators.
        constant: gives the values of a constant of the network, None for other values.

    Raises:
        UnsupportedOperatorError: the operator is not among those that torch runs, or an input that it must know
            hangs on the network's input.
    """
    found = lookup(node)
    known: dict[str, Json] = {}
    for number in found.known:
        name = node.inputs[number] if number < len(node.inputs) else ""
        if name:
            values = constant(name)
            if values is None:
                raise refusal(node, f"its input {number} ({name!r}) is not a constant")
            known[str(number)] = plain(values)["value"]
    attributes = {
        "operator": found.name, "onnx": {k: plain(v) for k, v in node.attributes.items()}, "opset": opset,
        "known": known, "inputs": len(node.inputs), "outputs": len(node.outputs),
    }  # fmt: skip
    return attributes, {str(i): name for i, name in enumerate(node.inputs) if name and i not in found.known}


def lookup(node: Operation) -> Operator:
    """The operator of a node among those that torch runs.

    Raises:
        UnsupportedOperatorError: there is none.
    """
    if node.operator not in OPERATORS:
        raise refusal(node, "it is not among the operators of docs/cuda-operators.md")
    return OPERATORS[node.operator]


def refusal(node: Operation, why: str) -> UnsupportedOperatorError:
    """The error for a node that cannot be run, without the network's name."""
    return UnsupportedOperatorError(
        f"{node.operator} cannot be run by the cuda engine: {why}",
        where=node.name,
        todo="run the network on another backend, such as onnxruntime",
    )


def fallback(low: Lowering, node: Operation) -> None:
    """Lowers a node by a ``torch`` step.

    Raises:
        UnsupportedOperatorError: see `describe`; names network, node and operator.
    """
    try:
        attributes, inputs = describe(node, low.opset, low.constant)
    except UnsupportedOperatorError as error:
        error.where = f"{low.where}: {node.name}"
        raise
    roles = {role: low.value(name) for role, name in inputs.items()}
    outputs = {
        str(i): low.output(node, i)
        for i, name in enumerate(node.outputs)
        if name and (low.readers(name) or low.is_output(name))
    }
    low.step("torch", node, roles, outputs, attributes)
