"""The TensorRT engine: a plan for each profile of window shapes, shared by its contexts."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

from wetread.engines.base import EngineInfo, LayerRun
from wetread.engines.common import (
    Closing,
    Ports,
    Shape3,
    check_network,
    check_output,
    check_window,
    known_window,
    tensor_infos,
)
from wetread.engines.ports import ports_of
from wetread.engines.tensorrt import runtime
from wetread.engines.tensorrt.builder import Job, build
from wetread.engines.tensorrt.context import TensorRtContext
from wetread.engines.tensorrt.cuda import Cuda
from wetread.engines.tensorrt.layers import layers_of
from wetread.engines.tensorrt.plan import TIMINGS, PlanRecord, plan_name, read_plan, write_plan
from wetread.errors import EngineError, EngineUnavailableError, Notice
from wetread.graph import Graph
from wetread.package import Package, ShapeProfile, bytes_sha256
from wetread.storage import write_bytes

WORKSPACE_BYTES = 4 * 2**30
"""Scratch memory that kernels may take, at most half of the device's."""


class TensorRtEngine(Closing):
    """A network as TensorRT plans on one GPU.

    Plans are kept in the package's ``engines/<fingerprint>/`` with a record beside each; one that was made by
    another version, for another GPU, network, package or profile is refused, and built anew with a notice.
    A network with free axes gets one plan for its profile, or, without one, a plan for each window shape.

    Args:
        graph: the network.
        precision: None or the graph's own; TensorRT computes in the types of the graph.
        device: ``cuda``, or ``cuda:1``.
        shapes: windows that one plan serves; others are refused.
        package: where plans are kept, and whose window is prepared beforehand; None keeps none.
        workspace_bytes: scratch memory for kernels.

    Attributes:
        info, inputs, outputs: see `wetread.engines.base.Engine`.
        bytes: weights, once for each plan.
        notices: what was built, and which plans were refused and why.
        plans: file names of the plans in use, in the package's folder for this device.

    Raises:
        EngineUnavailableError: tensorrt, CUDA, the GPU or the precision is missing.
        GraphError, UnsupportedOperatorError: TensorRT cannot run the network.
        EngineError: the plan cannot be built.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        precision: str | None = None,
        device: str = "cuda",
        shapes: ShapeProfile | None = None,
        package: Package | None = None,
        workspace_bytes: int = WORKSPACE_BYTES,
    ) -> None:
        if precision not in (None, graph.precision):
            raise EngineUnavailableError(
                f"the tensorrt backend runs the graph in its own types, {graph.precision}, not {precision}",
                todo="build a package in that precision",
            )
        self.inputs = tensor_infos(graph.inputs)
        self.outputs = tensor_infos(graph.outputs)
        check_network(self.inputs, self.outputs)
        self._trt = runtime.load()
        self._cuda = Cuda(device)
        self._cuda.use()
        self._logger = runtime.make_logger(self._trt)
        self._runtime: Any = self._trt.Runtime(logger=self._logger)
        place = f"{self._cuda.name} sm_{self._cuda.capability.replace('.', '')}"
        self.info = EngineInfo("tensorrt", graph.precision, place, str(self._trt.__version__))
        self.bytes = max(1, graph.weight_bytes)
        self.notices: list[Notice] = []
        self.plans: tuple[str, ...] = ()
        self._graph = graph
        self._content = graph.inlined().to_bytes()
        self._network_sha256 = bytes_sha256(self._content)
        self._package = package
        self._folder = package.cache_dir(self.info.fingerprint) if package is not None else None
        self._workspace_bytes = min(workspace_bytes, self._cuda.free_bytes()[1] // 2)
        self._profile = shapes
        self._engines: dict[ShapeProfile, Any] = {}
        self._contexts: weakref.WeakSet[TensorRtContext] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False
        if (shape := self._known_window()) is not None:
            self._engine(shape)

    def _known_window(self) -> Shape3 | None:
        """A window that will be asked for: the profile's, the network's own, or the recipe's."""
        if self._profile is not None:
            return self._profile.opt
        fixed = [size for size in self.inputs[0].shape[2:] if size is not None]
        if len(fixed) == 3:
            return fixed[0], fixed[1], fixed[2]
        return None if self._package is None else self._package.recipe.tiling.window

    def _shapes_for(self, shape: Shape3) -> ShapeProfile:
        free = any(None in info.shape[2:] for info in self.inputs)
        if self._profile is not None and free:
            return self._profile
        return ShapeProfile(min=shape, opt=shape, max=shape)

    def _engine(self, shape: Shape3) -> Any:
        """TensorRT's engine for windows of this shape: in use, from a plan on disk, or built."""
        shapes = self._shapes_for(shape)
        with self._lock:
            if self._closed:
                raise EngineError("the engine is closed", where=self._graph.where)
            if shapes not in self._engines:
                self._cuda.use()
                found = self._load(shapes)
                self._engines[shapes] = found if found is not None else self._build(shapes)
                self.bytes = max(1, self._graph.weight_bytes) * len(self._engines)
            return self._engines[shapes]

    def _record(self, shapes: ShapeProfile, plan: str) -> PlanRecord:
        return PlanRecord(
            tensorrt=self.info.version,
            gpu=self._cuda.name,
            compute_capability=self._cuda.capability,
            network=self._network_sha256,
            package="" if self._package is None else self._package.hash,
            shapes=shapes,
            options={"workspace_bytes": self._workspace_bytes, "tf32": False, "strongly_typed": True},
            plan=plan,
        )

    def _load(self, shapes: ShapeProfile) -> Any:
        """The engine from its plan on disk; None where there is none that fits, with a notice of why."""
        if self._folder is None:
            return None
        path = self._folder / plan_name(self._network_sha256, shapes)
        try:
            content = read_plan(path, self._record(shapes, "0" * 64))
            if content is None:
                return None
            engine = self._deserialise(content, path)
        except EngineError as error:
            self._notice("PLAN_REFUSED", error.what, str(path))
            return None
        self.plans = (*self.plans, path.name)
        return engine

    def _build(self, shapes: ShapeProfile) -> Any:
        """Builds a plan, keeps it where there is a folder for it, and makes the engine of it."""
        self._notice(
            "PLAN_BUILT",
            f"a TensorRT {self.info.version} plan for windows of {shapes.min} to {shapes.max} is built for "
            f"{self._cuda.name}; the gate has to be run with it",
            self._graph.where,
        )
        timings = self._folder / TIMINGS if self._folder is not None else None
        known = timings.read_bytes() if timings is not None and timings.is_file() else b""
        job = Job(self._content, self.inputs, shapes, self._workspace_bytes, known, self._graph.where)
        plan, measured = build(self._trt, self._logger, job)
        if self._folder is not None and timings is not None:
            path = self._folder / plan_name(self._network_sha256, shapes)
            if write_plan(path, plan, self._record(shapes, bytes_sha256(plan))):
                self.plans = (*self.plans, path.name)
                write_bytes(timings, measured)
        return self._deserialise(plan, Path(self._graph.where))

    def _deserialise(self, content: bytes, path: Path) -> Any:
        engine = self._runtime.deserialize_cuda_engine(serialized_engine=content)
        if engine is None:
            raise runtime.failure(self._logger, "TensorRT refuses the plan", str(path))
        modes = self._trt.TensorIOMode
        names = [engine.get_tensor_name(index=i) for i in range(engine.num_io_tensors)]
        for mode, infos in ((modes.INPUT, self.inputs), (modes.OUTPUT, self.outputs)):
            found = {name for name in names if engine.get_tensor_mode(name=name) == mode}
            if found != {info.name for info in infos}:
                raise EngineError(
                    f"the plan's tensors are {sorted(found)}, expected {sorted(i.name for i in infos)}",
                    where=str(path),
                )
        return engine

    def _notice(self, code: str, text: str, where: str) -> None:
        self.notices.append(Notice(code, text, where))
        runtime.LOG.warning("%s: %s [%s]", code, text, where)

    def _ports(self, shape: tuple[int, ...], max_batch: int) -> Ports:
        if self._closed:
            raise EngineError("the engine is closed", where=self._graph.where)
        window = check_window(shape, self.inputs, max_batch, self._profile)
        return ports_of(self._graph, self.inputs, self.outputs, window)

    def context(self, shape: tuple[int, int, int], max_batch: int = 1) -> TensorRtContext:
        """Makes a context for windows of the given spatial shape; may build a plan, with a notice.

        Raises:
            EngineError: the network does not take that shape, or the engine is closed.
            DeviceMemoryError: the context does not fit into the device's memory.
        """
        ports = self._ports(shape, max_batch)
        engine = self._engine((shape[0], shape[1], shape[2]))
        self._cuda.use()
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        execution = engine.create_execution_context(strategy=strategy)
        if execution is None:
            raise runtime.failure(self._logger, "TensorRT makes no execution context", self._graph.where)
        activations = int(engine.device_memory_size_v2)
        made = TensorRtContext(self._cuda, execution, ports, max_batch, activations, self._logger)
        self._contexts.add(made)
        return made

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """(channels, *spatial) of the first output for one window of the given spatial shape; or (classes,).

        Raises:
            EngineError: the network does not take that shape, or its first output is neither.
        """
        return check_output(self._ports(shape, 1)[1][0].shape, self.outputs[0].name)

    def layers(self, shape: tuple[int, int, int] | None = None) -> tuple[LayerRun, ...]:
        """What TensorRT executes, from its engine inspector.

        Args:
            shape: None takes the window that was prepared first.

        Raises:
            EngineError: no shape is given, fixed or used so far, or the network does not take it.
        """
        shape = known_window(shape, (shapes.opt for shapes in self._engines), self._graph.where)
        self._ports(shape, 1)
        inspector = self._engine(shape).create_engine_inspector()
        report = inspector.get_engine_information(format=self._trt.LayerInformationFormat.JSON)
        return layers_of(str(report))

    def close(self) -> None:
        """Frees contexts that are still open, then engines, then the runtime; a second call does nothing.

        TensorRT's objects must go in this order: a context outliving its engine is undefined.
        """
        with self._lock:
            self._closed = True
        for context in list(self._contexts):
            context.close()
        self._engines.clear()
        self._runtime = None
