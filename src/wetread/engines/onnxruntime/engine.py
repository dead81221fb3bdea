"""The ONNX Runtime engine: one session, shared by its contexts, for windows of every shape."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

from wetread.engines import processor
from wetread.engines.base import EngineInfo, LayerRun
from wetread.engines.common import (
    Closing,
    Ports,
    Shape3,
    check_network,
    check_output,
    check_window,
    tensor_infos,
)
from wetread.engines.onnxruntime import runtime
from wetread.engines.onnxruntime.context import OnnxRuntimeContext
from wetread.engines.onnxruntime.layers import layers_of
from wetread.engines.ports import ports_of
from wetread.errors import EngineError, EngineUnavailableError
from wetread.graph import Graph
from wetread.graph.memory import activation_bytes
from wetread.package import ShapeProfile


class OnnxRuntimeEngine(Closing):
    """A network in one session of ONNX Runtime.

    Args:
        graph: the network.
        source: the same as a file or ONNX bytes without functions; None takes the graph's own.
        precision: None or the graph's own; ONNX Runtime computes in the types of the graph.
        threads: processors to use; None takes all that this process may use.
        device: ``cpu``; ``cuda`` or ``cuda:1`` where the installed build has it.
        shapes: windows outside of this profile are refused; None refuses none.

    Attributes:
        info, inputs, outputs: see `wetread.engines.base.Engine`.
        bytes: the weights, twice: ONNX Runtime keeps a second copy in the layout of its kernels.

    Raises:
        EngineUnavailableError: onnxruntime, the device, or the precision is missing.
        GraphError: the network is malformed or not three-dimensional.
        UnsupportedOperatorError: ONNX Runtime does not know an operator.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        source: Path | bytes | None = None,
        precision: str | None = None,
        threads: int | None = None,
        device: str = "cpu",
        shapes: ShapeProfile | None = None,
    ) -> None:
        ort = runtime.load()
        self._ort = ort
        self._graph = graph
        self._source = source if source is not None else graph.inlined().to_bytes()
        self._where = graph.where
        self._profile = shapes
        if precision not in (None, graph.precision):
            raise EngineUnavailableError(
                f"the onnxruntime backend runs the graph in its own types, {graph.precision}, not {precision}",
                todo="build a package in that precision",
            )
        self._providers = runtime.providers(ort, device)
        self._threads = threads or processor.available_threads()
        self.inputs = tensor_infos(graph.inputs)
        self.outputs = tensor_infos(graph.outputs)
        check_network(self.inputs, self.outputs)
        self._session: Any = runtime.session(
            ort, self._source, runtime.options(ort, self._threads), self._providers, self._where
        )
        place = processor.processor_text() + f", {self._threads} threads"
        place = f"CPU ({place})" if device.lower() == "cpu" else device.lower()
        self.info = EngineInfo("onnxruntime", graph.precision, place, str(ort.__version__))
        self._on_cpu = device.lower() == "cpu"
        self.bytes = max(1, 2 * graph.weight_bytes)
        self._lock = threading.Lock()
        self._ports: dict[Shape3, tuple[Ports, int]] = {}
        self._closed = False

    def _prepare(self, shape: Shape3) -> tuple[Ports, int]:
        """Ports for windows of this shape, and their activations in bytes; cached."""
        with self._lock:
            if self._closed:
                raise EngineError("the engine is closed", where=self._where)
            if shape not in self._ports:
                ports = ports_of(self._graph, self.inputs, self.outputs, shape)
                activations = max(1, activation_bytes(self._graph, shape))
                if self._on_cpu:
                    processor.check_memory(shape, activations, self._where)
                self._ports[shape] = ports, activations
            return self._ports[shape]

    def context(self, shape: tuple[int, int, int], max_batch: int = 1) -> OnnxRuntimeContext:
        """Makes a context for windows of the given spatial shape.

        Raises:
            EngineError: the network does not take that shape, or the engine is closed.
            DeviceMemoryError: its activations are more than the memory that is free.
        """
        ports, activations = self._prepare(check_window(shape, self.inputs, max_batch, self._profile))
        return OnnxRuntimeContext(self._session, ports, max_batch, activations, self._where)

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """(channels, *spatial) of the first output for one window of the given spatial shape; or (classes,).

        Raises:
            EngineError: the network does not take that shape, or its first output is neither.
        """
        ports, _ = self._prepare(check_window(shape, self.inputs, 1, self._profile))
        return check_output(ports[1][0].shape, self.outputs[0].name)

    def layers(self, shape: tuple[int, int, int] | None = None) -> tuple[LayerRun, ...]:
        """What ONNX Runtime executes: the graph after its own optimisation, which is the same for every shape.

        Args:
            shape: checked, if one is given.

        Raises:
            EngineError: the network does not take that shape.
        """
        if shape is not None:
            self._prepare(check_window(shape, self.inputs, 1, self._profile))
        with tempfile.TemporaryDirectory() as folder:
            settings = runtime.options(self._ort, 1)
            settings.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            settings.log_severity_level = (
                4  # it warns that such a file suits this processor alone; it stays here
            )
            runtime.session(self._ort, self._source, settings, self._providers, self._where)
            return layers_of(Graph.load(Path(folder) / "optimised.onnx"))

    def close(self) -> None:
        """Frees the session; contexts must be closed before. A second call does nothing."""
        with self._lock:
            self._closed = True
            self._session = None
            self._ports.clear()
