"""The OpenVINO engine: one network, compiled once for each window shape.

One stream with all threads runs a window as fast as any split into streams does (two cores, 128×128×64
windows of a 3D U-Net: 248 ms a window with one stream, 244 with two, 252 with windows batched by two), and
needs the activations once. So windows of a batch are separate infer requests that the one stream runs in
turn; a window's numbers therefore do not depend on which batch it came in.

Without a profile of shapes each window shape is compiled for itself, which gives the fastest kernels; with one
the network is compiled once for the whole range.

Compiled blobs are kept only where a folder for them is given: a warm one saves 0.06 s of the 0.1 s that this
network takes, and 0.2 s for one of 104 MB, whose blob is as large again. Int8 networks gain a little more (20 MB,
one thread of a busy machine: 0.5 s instead of 0.8); engines are made beside the reading of slices, which takes
longer, so that packages keep none.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wetread.engines import processor
from wetread.engines.base import EngineInfo, LayerRun, TensorInfo
from wetread.engines.common import (
    Closing,
    Port,
    Shape3,
    check_network,
    check_output,
    check_window,
    known_window,
)
from wetread.engines.openvino import runtime
from wetread.engines.openvino.context import OpenVinoContext
from wetread.engines.openvino.dynamic import activation_estimate, bounded, reshape
from wetread.engines.openvino.layers import layers_of
from wetread.errors import EngineError, EngineUnavailableError
from wetread.package import ShapeProfile

_HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "f32", "float8": "f32"}
_CAPABILITY = {"bf16": "BF16", "f16": "FP16"}


@dataclass(frozen=True)
class Compiled:
    """The network compiled for windows of one shape, or of every shape of a profile.

    Attributes:
        network: OpenVINO's compiled model.
        ports: inputs and outputs for one window.
        activations: in bytes.
    """

    network: Any
    ports: tuple[tuple[Port, ...], tuple[Port, ...]]
    activations: int


class OpenVinoEngine(Closing):
    """A network on an OpenVINO device.

    Args:
        source: ONNX file, or its bytes.
        precision: ``float32`` and the like; None takes the network's own types. On processors with bfloat16
            units OpenVINO would use them unasked; here float32 means float32 unless ``bfloat16`` is named.
        threads: processors to use; None takes all that this process may use.
        device: OpenVINO's name of the device.
        shapes: windows from its smallest to its largest are served by one compiled network, others refused.
        cache_dir: folder for compiled blobs; None keeps none.
        where: name of the network in messages.

    Attributes:
        info, inputs, outputs: see `wetread.engines.base.Engine`.
        bytes: the constants, once for the network and once more for each window shape compiled so far.

    Raises:
        EngineUnavailableError: openvino, the device, or the precision on it is missing.
        GraphError: the network is malformed or not three-dimensional.
        UnsupportedOperatorError: OpenVINO does not know an operator.
    """

    def __init__(
        self,
        source: Path | bytes,
        *,
        precision: str | None = None,
        threads: int | None = None,
        device: str = "CPU",
        shapes: ShapeProfile | None = None,
        cache_dir: Path | None = None,
        where: str = "",
    ) -> None:
        ov = runtime.load()
        self._ov = ov
        self._core = ov.Core()
        self._where = where or (str(source) if isinstance(source, Path) else "network")
        capabilities = self._capabilities(device)
        self._model: Any = runtime.read_model(self._core, source, self._where)
        precision = self._chosen(precision, runtime.precision_of(self._model))
        self._config = self._settings(precision, threads, device, capabilities)
        if cache_dir is not None:
            self._config["CACHE_DIR"] = str(cache_dir)
        self.info = EngineInfo("openvino", precision, self._device_text(device), str(ov.get_version()))
        self.inputs = tuple(_tensor_info(port) for port in self._model.inputs)
        self.outputs = tuple(_tensor_info(port) for port in self._model.outputs)
        check_network(self.inputs, self.outputs)
        self._weights = runtime.weight_bytes(self._model)
        self.bytes = self._weights
        self._device = device
        self._profile = shapes
        free = any(None in info.shape[2:] for info in self.inputs)
        self._shapes = shapes if shapes is not None and free and shapes.min != shapes.max else None
        self._lock = threading.Lock()
        self._compiled: dict[Shape3, Compiled] = {}
        self._closed = False

    def _capabilities(self, device: str) -> list[str]:
        try:
            return list(self._core.get_property(device, "OPTIMIZATION_CAPABILITIES"))
        except RuntimeError as error:
            raise EngineUnavailableError(
                f"OpenVINO has no device {device!r}, found {', '.join(self._core.available_devices)}",
                todo="use device 'CPU'",
            ) from error

    @staticmethod
    def _chosen(asked: str | None, own: str) -> str:
        """The precision that is asked for; quantised graphs have no other than their own, and others not theirs."""
        if asked not in (None, own) and {asked, own} & {"int8", "float8"}:
            raise EngineUnavailableError(
                f"the network is {own} and cannot be run as {asked}: quantise nodes are part of the graph",
                todo=f"build a package in {asked}, or leave the precision to the network",
            )
        return asked or own

    @staticmethod
    def _settings(
        precision: str, threads: int | None, device: str, capabilities: list[str]
    ) -> dict[str, str | int | bool]:
        if precision not in _HINTS:
            raise EngineUnavailableError(
                f"the openvino backend knows no precision {precision!r}",
                todo=f"use one of {', '.join(_HINTS)}",
            )
        hint = _HINTS[precision]
        if hint == "bf16" and _CAPABILITY[hint] not in capabilities:
            raise EngineUnavailableError(
                f"{device} has no {precision} units", todo="use float32, or a processor that has them"
            )
        if hint == "f16" and _CAPABILITY[hint] not in capabilities:
            hint = "f32"  # types in the graph are float16; the arithmetic is then float32, never less
        config: dict[str, str | int | bool] = {"INFERENCE_PRECISION_HINT": hint}
        if device == "CPU":
            config["NUM_STREAMS"] = 1
            config["INFERENCE_NUM_THREADS"] = threads or processor.available_threads()
            config["ENABLE_CPU_PINNING"] = False  # several processes would be pinned to the same cores
        return config

    def _device_text(self, device: str) -> str:
        name = str(self._core.get_property(device, "FULL_DEVICE_NAME")).strip()
        threads = self._config.get("INFERENCE_NUM_THREADS")
        name = processor.processor_text(name) if device == "CPU" else name
        return f"{device} ({name}, {threads} threads)" if threads else f"{device} ({name})"

    def _compile(self, shape: Shape3) -> Compiled:
        """The network compiled for windows of this shape; cached."""
        with self._lock:
            if self._closed:
                raise EngineError("the engine is closed", where=self._where)
            if shape not in self._compiled:
                try:
                    model = reshape(self._ov, self._model, self.inputs, shape)
                    if self._shapes is not None:
                        made = Compiled(self._bounded(), _ports(model), activation_estimate(model))
                    else:
                        compiled = self._core.compile_model(model, self._device, self._config)
                        made = Compiled(compiled, _ports(compiled), runtime.activation_bytes(compiled))
                except (RuntimeError, MemoryError) as error:
                    raise runtime.failure(
                        error,
                        f"the network does not take windows of {shape}",
                        self._where,
                        "use a window whose sizes are multiples of the network's strides",
                    ) from error
                if self._device == "CPU":
                    processor.check_memory(shape, made.activations, self._where)
                self._compiled[shape] = made
                copies = len({id(compiled.network) for compiled in self._compiled.values()})
                self.bytes = self._weights * (1 + copies)
            return self._compiled[shape]

    def _bounded(self) -> Any:
        """The network compiled for every shape of the profile; once."""
        for made in self._compiled.values():
            return made.network
        assert self._shapes is not None
        model = bounded(self._ov, self._model, self.inputs, self._shapes)
        return self._core.compile_model(model, self._device, self._config)

    def context(self, shape: tuple[int, int, int], max_batch: int = 1) -> OpenVinoContext:
        """Makes a context for windows of the given spatial shape; compiles at the first of each shape.

        Raises:
            EngineError: the network does not take that shape, or the engine is closed.
            DeviceMemoryError: its activations are more than the memory that is free.
        """
        made = self._compile(check_window(shape, self.inputs, max_batch, self._profile))
        return OpenVinoContext(self._ov, made.network, made.ports, max_batch, made.activations)

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """(channels, *spatial) of the first output for one window of the given spatial shape; or (classes,).

        Raises:
            EngineError: the network does not take that shape, or its first output is neither.
        """
        made = self._compile(check_window(shape, self.inputs, 1, self._profile))
        return check_output(made.ports[1][0].shape, self.outputs[0].name)

    def layers(self, shape: tuple[int, int, int] | None = None) -> tuple[LayerRun, ...]:
        """What OpenVINO executes for one window, from its own execution graph.

        This is the proof of precision: a convolution that runs in integers has a kernel such as
        ``brgconv_avx512_I8`` and precision ``int8``.

        Args:
            shape: None takes the network's fixed window, else the shape that was used first.

        Raises:
            EngineError: no shape is given, fixed or used so far, or the network does not take it.
        """
        if shape is None:
            fixed = tuple(size for size in self.inputs[0].shape[2:] if size is not None)
            with self._lock:
                used = list(self._compiled)
            shape = (
                (fixed[0], fixed[1], fixed[2]) if len(fixed) == 3 else known_window(None, used, self._where)
            )
        return layers_of(self._compile(check_window(shape, self.inputs, 1, self._profile)).network)

    def close(self) -> None:
        """Frees the compiled networks; contexts must be closed before. A second call does nothing."""
        with self._lock:
            self._closed = True
            self._compiled.clear()
            self._model = None


def _tensor_info(port: Any) -> TensorInfo:
    shape = tuple(
        dim.get_length() if dim.is_static else None for dim in port.get_partial_shape()
    )  # fmt: skip
    return TensorInfo(port.get_any_name(), shape, runtime.element_name(port.get_element_type()))


def _ports(compiled: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    def port(found: Any) -> Port:
        shape = tuple(int(size) for size in found.get_shape())[1:]
        return Port(found.get_any_name(), shape, (runtime.element_name(found.get_element_type()),))

    return tuple(port(p) for p in compiled.inputs), tuple(port(p) for p in compiled.outputs)
