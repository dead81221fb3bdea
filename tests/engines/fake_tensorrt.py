"""A TensorRT that computes with OpenVINO, with the members of `api.CLASSES` and no others.

Plans are the network behind a line of JSON. Execution contexts read and write the addresses that they were given,
when the fake CUDA's stream gets there; whatever real TensorRT leaves undefined is a fault here.
"""

from __future__ import annotations

import enum
import json
from contextlib import suppress
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.engines.fake_cuda import FakeCuda
from wetread.engines import make_engine
from wetread.errors import WetreadError
from wetread.graph import Graph

ACTIVATIONS = 4096
META = "[ONNX Layer: conv_1]\u001e[ONNX Layer: relu_2]"


class FakeTensorRt:
    """One installation: a version, a GPU, and a record of what was asked.

    Attributes:
        calls: names and notable arguments in order.
        fail: names of calls that report failure, as TensorRT does, by what they return.
    """

    def __init__(self, cuda: FakeCuda, version: str = "11.4.0.106") -> None:
        self.cuda = cuda
        self.version = version
        self.calls: list[tuple[Any, ...]] = []
        self.fail: set[str] = set()

    def module(self) -> ModuleType:
        """As ``tensorrt``."""
        made = ModuleType("tensorrt")
        made.__version__ = self.version
        fake = self

        class ILogger:
            class Severity(enum.IntEnum):
                INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

            def __init__(self):
                self.alive = True

            def log(self, severity, msg):
                raise NotImplementedError

        class Builder(_Builder):
            def __init__(self, logger):
                assert logger.alive  # a subclass that does not call ILogger.__init__ crashes TensorRT
                self.fake, self.logger = fake, logger

        class OnnxParser(_OnnxParser):
            def __init__(self, network, logger):
                self.fake, self.network, self.logger, self.errors = fake, network, logger, []

        class Runtime(_Runtime):
            def __init__(self, logger):
                assert logger.alive
                self.fake, self.logger = fake, logger

        made.ILogger, made.Builder, made.OnnxParser, made.Runtime = ILogger, Builder, OnnxParser, Runtime
        made.IBuilderConfig, made.IOptimizationProfile = IBuilderConfig, IOptimizationProfile
        made.ITimingCache, made.ParserError, made.ICudaEngine = ITimingCache, ParserError, ICudaEngine
        made.EngineInspector, made.IExecutionContext = EngineInspector, IExecutionContext
        for name, members in {
            "BuilderFlag": "TF32", "NetworkDefinitionCreationFlag": "STRONGLY_TYPED",
            "MemoryPoolType": "WORKSPACE", "ProfilingVerbosity": "DETAILED", "TensorIOMode": "INPUT OUTPUT",
            "ExecutionContextAllocationStrategy": "USER_MANAGED", "LayerInformationFormat": "JSON",
        }.items():  # fmt: skip
            setattr(made, name, enum.IntEnum(name, members))
        return made


class _Builder:
    def create_network(self, flags):
        self.fake.calls.append(("create_network", flags))
        return SimpleNamespace(content=b"")

    def create_builder_config(self):
        return IBuilderConfig(self.fake)

    def create_optimization_profile(self):
        return IOptimizationProfile(self.fake)

    def build_serialized_network(self, network, config):
        self.fake.calls.append(("build", config.profiling_verbosity.name))
        if "build" in self.fake.fail:
            self.logger.log(
                type(self.logger).Severity.ERROR, "[builder] Error Code 10: no kernels for node a"
            )
            return None
        graph = Graph.from_bytes(network.content)
        shapes = config._profiles[0]._shapes if config._profiles else {}
        head = {"version": self.fake.version, "shapes": shapes, "inputs": [e.name for e in graph.inputs],
                "outputs": [e.name for e in graph.outputs]}  # fmt: skip
        return memoryview(json.dumps(head).encode() + b"\n" + network.content)


class IBuilderConfig:
    profiling_verbosity: Any = None

    def __init__(self, fake: FakeTensorRt) -> None:
        self._fake, self._cache, self._profiles = fake, None, []

    def set_memory_pool_limit(self, pool, pool_size):
        self._fake.calls.append(("workspace", pool.name, pool_size))

    def clear_flag(self, flag):
        self._fake.calls.append(("clear", flag.name))

    def add_optimization_profile(self, profile):
        if "profile" in self._fake.fail:
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache):
        return ITimingCache(self._fake, bytes(serialized_timing_cache))

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        good = not cache.content or cache.content.startswith(self._fake.version.encode())
        self._fake.calls.append(("timings", cache.content, good))
        if good:
            self._cache = cache
        return good

    def get_timing_cache(self):
        return self._cache


class ITimingCache:
    def __init__(self, fake: FakeTensorRt, content: bytes) -> None:
        self._fake, self.content = fake, content

    def serialize(self):
        return memoryview(self.content or self._fake.version.encode() + b" timings")


class IOptimizationProfile:
    def __init__(self, fake: FakeTensorRt) -> None:
        self._fake, self._shapes = fake, {}

    def set_shape(self, input, min, opt, max):
        if any(not 1 <= a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise ValueError("dimensions must not shrink")
        self._fake.calls.append(("profile", input, min, opt, max))
        self._shapes[input] = [min, opt, max]


class ParserError:
    def __init__(self, code: str, desc: str, name: str, operator: str) -> None:
        self._values = code, desc, name, operator

    def code(self):
        return self._values[0]

    def desc(self):
        return self._values[1]

    def node_name(self):
        return self._values[2]

    def node_operator(self):
        return self._values[3]


class _OnnxParser:
    num_errors = property(lambda self: len(self.errors))

    def parse(self, model):
        graph = Graph.from_bytes(model)
        assert not graph.model.functions, "TensorRT is fed standard operators only"
        for node in graph.nodes:
            if node.op_type == "Einsum":
                text = "In node 0: UNSUPPORTED_NODE"
                self.errors.append(ParserError("ErrorCode.UNSUPPORTED_NODE", text, node.name, node.op_type))
        self.network.content = model
        if "parse" in self.fake.fail:
            self.errors.append(ParserError("ErrorCode.INVALID_GRAPH", "no such tensor", "", ""))
        return not self.errors

    def get_error(self, index):
        return self.errors[index]


class _Runtime:
    def deserialize_cuda_engine(self, serialized_engine):
        head, _, network = bytes(serialized_engine).partition(b"\n")
        if json.loads(head)["version"] != self.fake.version or "deserialise" in self.fake.fail:
            severity = type(self.logger).Severity.ERROR
            self.logger.log(severity, "The engine plan file is not compatible with this version of TensorRT")
            return None
        return ICudaEngine(self.fake, self.logger, json.loads(head), network)


class ICudaEngine:
    device_memory_size_v2 = ACTIVATIONS

    def __init__(self, fake: FakeTensorRt, logger: Any, head: dict[str, Any], network: bytes) -> None:
        self.fake, self.logger, self.head = fake, logger, head
        self.peer = make_engine(Graph.from_bytes(network), "openvino", threads=1)
        self.names = head["inputs"] + head["outputs"]

    num_io_tensors = property(lambda self: len(self.names))

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return 1 if name in self.head["inputs"] else 2

    def create_execution_context(self, strategy):
        self.fake.calls.append(("execution context", strategy.name))
        return None if "context" in self.fake.fail else IExecutionContext(self)

    def create_engine_inspector(self):
        return EngineInspector()


class EngineInspector:
    def get_engine_information(self, format):
        layers = [
            {"Name": "a", "LayerType": "CaskConvolution", "TacticName": "sm80_i8", "Metadata": META,
             "Inputs": [{"Name": "x", "Format/Datatype": "Int8 NC/32HW32"}]},
            {"Name": "b", "LayerType": "Reformat", "Inputs": [], "Outputs": [{"Format/Datatype": "Half NHWC"}]},
            "named only",
        ]  # fmt: skip
        return json.dumps({"Layers": layers, "Bindings": []})


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._fake = engine, engine.fake
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None

    def __del__(self) -> None:
        self._fake.cuda.log.append("drop execution context")

    def set_input_shape(self, name, shape):
        low, _, high = self._engine.head["shapes"].get(name, [shape] * 3)
        good = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if good:
            self._shapes[name] = tuple(shape)
        else:
            severity = type(self._engine.logger).Severity.ERROR
            self._engine.logger.log(severity, f"{shape} is not in [{low}, {high}]")
        return good

    def get_tensor_shape(self, name):
        window = next(iter(self._shapes.values()))[2:]
        made = self._engine.peer._compile(tuple(window))
        return (1, *next(port.shape for port in made.ports[1] if port.name == name))

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return "address" not in self._fake.fail

    def set_device_memory(self, memory, size):
        self._scratch = memory, size

    def execute_async_v3(self, stream_handle):
        if "execute" in self._fake.fail:
            severity = type(self._engine.logger).Severity.ERROR
            self._engine.logger.log(severity, "enqueueV3 failed: out of memory")
            return False
        self._fake.cuda.put(stream_handle, self._run)
        return True

    def _run(self) -> None:
        cuda = self._fake.cuda
        if self._scratch is None or not cuda.owned(self._scratch[0], ACTIVATIONS, "device"):
            cuda.faults.append("no activations")
            return
        from wetread.engines.tensorrt.cuda import view

        arrays = {}
        for info in (*self._engine.peer.inputs, *self._engine.peer.outputs):
            shape = self._shapes.get(info.name) or self.get_tensor_shape(info.name)
            size = int(np.prod(shape)) * np.dtype(info.dtype).itemsize
            if not cuda.owned(self._addresses[info.name], size, "device"):
                cuda.faults.append(f"{info.name} lies in memory that nobody owns")
                return
            arrays[info.name] = view(self._addresses[info.name], tuple(shape), info.dtype)
        inputs = tuple(arrays[info.name] for info in self._engine.peer.inputs)
        outputs = tuple(arrays[info.name] for info in self._engine.peer.outputs)
        # a GPU does not look at the numbers that it makes
        with self._engine.peer.context(inputs[0].shape[2:]) as context, suppress(WetreadError):
            context.submit(inputs, outputs).wait()
