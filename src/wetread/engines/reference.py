"""The reference engine: float64, slow, obvious. What other engines are compared with."""

from __future__ import annotations

import numpy as np

from wetread import __version__
from wetread.engines.base import EngineInfo
from wetread.engines.common import (
    Closing,
    Port,
    Shape3,
    check_arrays,
    check_finite,
    check_network,
    check_output,
    check_window,
    tensor_infos,
)
from wetread.engines.registry import Request
from wetread.errors import EngineError, GraphError
from wetread.graph import Graph, verify
from wetread.graph.evaluate import Evaluator
from wetread.package import ShapeProfile


class ReferenceTicket:
    """A batch that ran while it was submitted; keeps its error for `wait`."""

    def __init__(self, error: EngineError | None) -> None:
        self._error = error

    def done(self) -> bool:
        """Always True."""
        return True

    def wait(self) -> None:
        """Raises what went wrong while the batch ran, if anything."""
        if self._error is not None:
            raise self._error


class ReferenceContext(Closing):
    """Runs each batch at once, in the caller's thread.

    Attributes:
        bytes: every value of the graph for one window, were none dropped: an upper bound that needs no run.
        max_batch: largest batch that `submit` takes.
    """

    def __init__(self, engine: ReferenceEngine, shape: Shape3, max_batch: int) -> None:
        self.max_batch = max_batch
        self._evaluator = engine.evaluator
        self._ports = engine.ports(shape)
        self.bytes = 8 * sum(int(np.prod(port.shape)) for ports in self._ports for port in ports)
        self.bytes *= max(1, len(engine.graph.nodes))
        self._closed = False

    def submit(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> ReferenceTicket:
        """Runs one batch; outputs may be of the network's type or float64, which keeps every digit.

        Raises:
            NotFiniteError: an input holds NaN or infinity.
            EngineError: an array does not fit, or the context is closed.
        """
        if self._closed:
            raise EngineError("the context is closed")
        n = check_arrays(inputs, outputs, self._ports, self.max_batch)
        check_finite(inputs, self._ports[0], "input")
        try:
            for i in range(n):
                feed = {
                    port.name: array[i : i + 1] for port, array in zip(self._ports[0], inputs, strict=True)
                }
                with np.errstate(all="ignore"):
                    results = self._evaluator.run(feed)
                    for port, array in zip(self._ports[1], outputs, strict=True):
                        array[i : i + 1] = results[port.name]
            check_finite(outputs, self._ports[1], "output")
        except EngineError as error:
            return ReferenceTicket(error)
        except GraphError as error:
            failed = EngineError(error.what, where=error.where)
            failed.__cause__ = error
            return ReferenceTicket(failed)
        return ReferenceTicket(None)

    def close(self) -> None:
        """A second call does nothing."""
        self._closed = True


class ReferenceEngine(Closing):
    """A network evaluated in float64 by `wetread.graph.evaluate`.

    Args:
        graph: the network.
        shapes: windows outside of this profile are refused, as other engines do; None refuses none.

    Raises:
        GraphError: the graph is malformed or not three-dimensional.
        UnsupportedOperatorError: the evaluator does not know an operator.
    """

    def __init__(self, graph: Graph, shapes: ShapeProfile | None = None) -> None:
        verify(graph)
        self._profile = shapes
        self.graph = graph
        self.info = EngineInfo("reference", "float64", "CPU (numpy)", __version__)
        self.inputs = tensor_infos(graph.inputs)
        self.outputs = tensor_infos(graph.outputs)
        check_network(self.inputs, self.outputs)
        self.evaluator = Evaluator(graph)
        self.bytes = max(1, 2 * graph.weight_bytes)
        self._shapes: dict[Shape3, dict[str, tuple[int, ...]]] = {}
        self._closed = False

    def ports(self, shape: Shape3) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        """Ports for windows of this shape; the first of each shape runs the network once on noise.

        Raises:
            EngineError: the network does not take that shape.
        """
        feed_shapes = [(int(info.shape[1] or 1), *shape) for info in self.inputs]
        if shape not in self._shapes:
            rng = np.random.default_rng(0)
            feed = {
                info.name: rng.random((1, *size)) for info, size in zip(self.inputs, feed_shapes, strict=True)
            }
            try:
                with np.errstate(all="ignore"):
                    results = self.evaluator.run(feed)
            except GraphError as error:
                raise EngineError(
                    f"the network does not take windows of {shape}: {error.what}", where=error.where
                ) from error
            self._shapes[shape] = {name: array.shape[1:] for name, array in results.items()}
        found = self._shapes[shape]
        inputs = tuple(
            Port(
                info.name, size, (info.dtype, "float64") if info.dtype.startswith("float") else (info.dtype,)
            )
            for info, size in zip(self.inputs, feed_shapes, strict=True)
        )
        outputs = tuple(
            Port(info.name, found[info.name], tuple(dict.fromkeys((info.dtype, "float64"))))
            for info in self.outputs
        )
        return inputs, outputs

    def context(self, shape: tuple[int, int, int], max_batch: int = 1) -> ReferenceContext:
        """Makes a context for windows of the given spatial shape.

        Raises:
            EngineError: the network does not take that shape, or the engine is closed.
        """
        if self._closed:
            raise EngineError("the engine is closed")
        return ReferenceContext(self, check_window(shape, self.inputs, max_batch, self._profile), max_batch)

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """(channels, *spatial) of the first output for one window of the given spatial shape; or (classes,)."""
        found = self.ports(check_window(shape, self.inputs, 1, self._profile))[1][0].shape
        return check_output(found, self.outputs[0].name)

    def close(self) -> None:
        """A second call does nothing."""
        self._closed = True


def make(request: Request) -> ReferenceEngine:
    """Makes the engine that `wetread.engines.registry.make_engine` was asked for."""
    return ReferenceEngine(request.graph(), request.shapes)
