"""Players: a network in each runtime, called as that runtime's users call it."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from wetread.bench.task import DEVICES, Float32, Player, Task, sizes
from wetread.engines.registry import make_engine
from wetread.errors import EngineError
from wetread.graph import Graph
from wetread.package import Package


def make_player(task: Task, index: int) -> Player:
    """The player of a task's network number ``index``."""
    players: dict[str, Callable[[Task, int], Player]] = {
        "torch-eager": TorchPlayer,
        "torch-script": TorchPlayer,
        "onnxruntime": OnnxRuntimePlayer,
        "openvino": OpenVinoPlayer,
        "wetread": WetreadPlayer,
    }
    return players[task.kind](task, index)


class TorchPlayer:
    """PyTorch in inference mode; ``torch-script`` is the traced module, frozen and optimised for inference."""

    def __init__(self, task: Task, index: int) -> None:
        import torch

        torch.set_num_threads(task.threads)
        torch.set_num_interop_threads(1)
        self._torch = torch
        self.versions = {"torch": metadata.version("torch")}
        self.layers: dict[str, int] = {}
        self._module = self._make(task, index).eval()
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            file = Path(folder) / "network.pt"
            if task.kind == "torch-script":
                example = torch.rand((1, task.channels, *task.window))
                with warnings.catch_warnings():
                    warnings.simplefilter(
                        "ignore"
                    )  # the tracer's remarks on constants; TorchScript is what is asked
                    traced = torch.jit.trace(self._module, example, check_trace=False)
                    traced.save(str(file))
                    self._module = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
            else:
                torch.save(self._module.state_dict(), file)
            self.size_bytes = file.stat().st_size

    @staticmethod
    def _make(task: Task, index: int) -> Any:
        if not task.factory:
            from wetread.bench.peers.torch_network import TorchNetwork

            return TorchNetwork(Graph.load(Path(task.networks[index])))
        file, function = task.factory.rsplit(":", 1)
        spec = importlib.util.spec_from_file_location("factory", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, function)()

    def run(self, image: Float32) -> Float32:
        """One window."""
        with self._torch.inference_mode():
            return np.asarray(self._module(self._torch.from_numpy(image)).numpy())


class OnnxRuntimePlayer:
    """ONNX Runtime on the CPU with all its graph optimisations."""

    def __init__(self, task: Task, index: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = task.threads, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # between its turns its threads must not take the processor from the other rows
        options.add_session_config_entry("session.force_spinning_stop", "1")
        network = Graph.load(Path(task.networks[index])).inlined().to_bytes()
        self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        self.size_bytes = sizes((task.networks[index],))
        self.versions = {"onnxruntime": metadata.version("onnxruntime")}
        self.layers: dict[str, int] = {}

    def run(self, image: Float32) -> Float32:
        """One window."""
        return np.asarray(self._session.run([self._output], {self._name: image})[0])


class OpenVinoPlayer:
    """OpenVINO's own Python interface: latency hint, one stream, the network as it is."""

    def __init__(self, task: Task, index: int) -> None:
        from wetread.engines.openvino import runtime

        openvino = runtime.load()
        core = openvino.Core()
        model = core.read_model(Graph.load(Path(task.networks[index])).inlined().to_bytes())
        model.reshape([1, task.channels, *task.window])
        config = {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": task.threads,
            "ENABLE_CPU_PINNING": False,
        }
        self._request = core.compile_model(model, "CPU", config).create_infer_request()
        self.size_bytes = sizes((task.networks[index],))
        self.versions = {"openvino": str(openvino.get_version())}
        self.layers: dict[str, int] = {}

    def run(self, image: Float32) -> Float32:
        """One window; the result is the request's own memory, as with ``share_outputs``."""
        return np.asarray(self._request.infer([image], share_inputs=True, share_outputs=True)[0])


class WetreadPlayer:
    """wetread's engine and context, as `wetread read` uses them: checked inputs and outputs included.

    Attributes:
        device_bytes: weights and context in a GPU's memory; 0 on processors.
    """

    device_bytes = 0

    def __init__(self, task: Task, index: int) -> None:
        file = Path(task.networks[index])
        if task.package:
            package = Package.open(Path(task.package))
            engine = make_engine(
                package,
                task.backend,
                model=index,
                precision=task.arithmetic or None,
                threads=task.threads,
                override_gate=task.allow_failed_gate,
            )
        else:
            engine = make_engine(
                _plain(task, file), task.backend, precision=task.arithmetic or None, threads=task.threads
            )
        if engine.info.precision != task.precision:
            raise EngineError(
                f"the engine computes in {engine.info.precision}, the row says {task.precision}",
                where=str(file),
            )
        shape = engine.output_shape(task.window)
        self._context = engine.context(task.window)
        self._output = np.zeros((1, *shape), np.float32)
        self.size_bytes = sizes((str(file),))
        self.versions = {
            "wetread": metadata.version("wetread"),
            engine.info.backend: engine.info.version,
        }
        self.layers = (
            dict(Counter(layer.precision for layer in engine.layers())) if hasattr(engine, "layers") else {}
        )
        if task.backend in DEVICES:
            self.device_bytes = engine.bytes + self._context.bytes
        self._engine = engine

    def run(self, image: Float32) -> Float32:
        """One window."""
        self._context.submit((image,), (self._output,)).wait()
        return self._output


def _plain(task: Task, file: Path) -> Path | Graph:
    """A plain ONNX file, through wetread's graph passes where the task says so."""
    if not task.optimise:
        return file
    from wetread.graph.passes import optimise

    return optimise(Graph.load(file), window=task.window)[0]
