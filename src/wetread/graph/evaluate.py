"""A network run in float64, slowly and obviously: what every engine is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from onnx.reference import ReferenceEvaluator

from wetread.errors import GraphError, UnsupportedOperatorError
from wetread.graph.double import to_double
from wetread.graph.operators import OPERATORS
from wetread.graph.shapes import infer

if TYPE_CHECKING:
    from wetread.graph.graph import Graph


class Evaluator:
    """A network prepared for float64 evaluation: ONNX's own reference operators, with ours where it falls short.

    ONNX's reference loops over voxels in Python for convolutions, pooling and resizing, which takes minutes for
    one 3D window, and computes a few operators in float32 whatever it is given; those are replaced
    (`wetread.graph.operators`). Intermediate values are dropped after their last use.

    Raises:
        UnsupportedOperatorError: neither knows an operator.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        double = to_double(graph.inlined().model)
        typed = infer(double, strict=False)  # operators defined as functions need their types
        try:
            self._session = ReferenceEvaluator(typed, new_ops=list(OPERATORS))
        except (NotImplementedError, RuntimeError, TypeError) as error:
            raise UnsupportedOperatorError(
                f"the reference evaluator cannot run this network: {error}", where=graph.where
            ) from error
        self._uses = Counter(name for node in self._session.rt_nodes_ for name in node.input)

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        keep: Sequence[str] = (),
        watch: Callable[[str, np.ndarray], None] | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs the network once.

        Args:
            inputs: arrays by name; floating-point ones are widened to float64.
            keep: names of inner values that are returned as well.
            watch: is shown every value, by name, as soon as it is computed.

        Returns:
            Outputs and kept values by name; floating-point ones in float64.

        Raises:
            GraphError: an input is missing or unknown, `keep` names no value, or a node fails; names the node.
        """
        expected = {entry.name for entry in self._graph.inputs}
        if set(inputs) != expected:
            raise GraphError(
                f"inputs are {sorted(inputs)}, expected {sorted(expected)}", where=self._graph.where
            )
        values: dict[str, np.ndarray | None] = {"": None, **self._session.rt_inits_}
        for name, array in inputs.items():
            values[name] = array.astype(np.float64) if array.dtype.kind == "f" else array
        wanted = {entry.name for entry in self._graph.outputs} | set(keep)
        left = self._uses.copy()
        for node in self._session.rt_nodes_:
            try:
                results = node.run(*(values[name] for name in node.input))
            except Exception as error:
                cause = error.__cause__ or error
                raise GraphError(
                    f"cannot be evaluated: {cause}",
                    where=f"{self._graph.where}: {node.op_type} {node.output[0]!r}",
                ) from error
            values.update(zip(node.output, results, strict=False))
            for name, result in zip(node.output, results, strict=False):
                if watch is not None and name:
                    watch(name, result)
            for name in node.input:
                left[name] -= 1
                if name and not left[name] and name not in wanted:
                    values.pop(name, None)
        if unknown := sorted(name for name in wanted if name not in values):
            raise GraphError(f"there is no value {unknown[0]!r}", where=self._graph.where)
        return {name: found for name in wanted if (found := values[name]) is not None}


def evaluate(
    graph: Graph, inputs: Mapping[str, np.ndarray], keep: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Runs a network once in float64; see `Evaluator.run` for arguments and errors."""
    return Evaluator(graph).run(inputs, keep)
