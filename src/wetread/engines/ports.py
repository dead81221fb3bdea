"""Shapes of a network's inputs and outputs for one window, by inference on its graph."""

from __future__ import annotations

from collections.abc import Sequence

from wetread.engines.base import TensorInfo
from wetread.engines.common import Port, Ports, Shape3, window_refused
from wetread.errors import EngineError, GraphError
from wetread.graph import Graph


def ports_of(
    graph: Graph, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], shape: Shape3
) -> Ports:
    """Ports of a context for windows of this shape.

    Raises:
        EngineError: the network does not take it, or inference does not tell an output's shape.
    """
    try:
        found = graph.inlined().output_shapes(shape)
    except GraphError as error:
        raise window_refused(shape, error) from error
    for name, sizes in found.items():
        if None in sizes[1:]:
            raise EngineError(
                f"the output's shape cannot be inferred for windows of {shape}, found {sizes}",
                where=f"{graph.where}: {name}",
                todo="use the openvino backend, or export the network with this window fixed",
            )
    return (
        tuple(Port(info.name, (int(info.shape[1] or 1), *shape), (info.dtype,)) for info in inputs),
        tuple(
            Port(info.name, tuple(int(size or 1) for size in found[info.name][1:]), (info.dtype,))
            for info in outputs
        ),
    )
