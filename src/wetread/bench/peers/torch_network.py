"""An ONNX network as a PyTorch module, so that PyTorch computes with the very same weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from wetread.bench.peers.operators import FUNCTIONS, UnknownFormError
from wetread.errors import UnsupportedOperatorError
from wetread.graph import Graph
from wetread.graph.plain import Operation, operations


class TorchNetwork(torch.nn.Module):  # type: ignore[misc]
    """Executes the nodes of a graph one after another; weights are buffers of the module.

    A value lives until its last use, as in a module that is written by hand.

    Args:
        graph: of one input.

    Raises:
        UnsupportedOperatorError: an operator has no counterpart here.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._where = graph.where
        self._operations = [op for op in operations(graph) if op.operator != "Constant"]
        unknown = sorted({op.operator for op in self._operations} - FUNCTIONS.keys())
        if unknown:
            raise UnsupportedOperatorError(
                f"no counterpart in PyTorch is known here for {', '.join(unknown)}", where=graph.where
            )
        constants = dict(graph.weights)
        for op in operations(graph):
            if op.operator == "Constant":
                constants[op.outputs[0]] = next(iter(op.attributes.values()))
        self._names: dict[str, str] = {}
        for number, (name, array) in enumerate(constants.items()):
            self._names[name] = f"constant_{number}"
            self.register_buffer(f"constant_{number}", torch.tensor(array))
        self._input, self._output = graph.inputs[0].name, graph.outputs[0].name
        self._uses = Counter(name for op in self._operations for name in op.inputs)
        self._uses[self._output] += 1

    def forward(self, image: Any) -> Any:
        """(n, channels, *spatial) → the network's first output."""
        values: dict[str, Any] = {name: getattr(self, key) for name, key in self._names.items()}
        values[self._input] = image
        uses = self._uses.copy()
        for op in self._operations:
            results = self._run(op, [values[name] if name else None for name in op.inputs])
            values.update(zip(op.outputs, results, strict=False))
            for name in op.inputs:
                uses[name] -= 1
                if name and not uses[name]:
                    del values[name]
        return values[self._output]

    def _run(self, op: Operation, inputs: list[Any]) -> tuple[Any, ...]:
        try:
            found = FUNCTIONS[op.operator](inputs, op.attributes)
        except UnknownFormError as error:
            raise UnsupportedOperatorError(
                f"{op.operator} {op.name!r}: {error} has no counterpart in PyTorch here", where=self._where
            ) from error
        return tuple(found) if isinstance(found, tuple | list) else (found,)
