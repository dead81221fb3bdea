"""ONNX Runtime loaded quietly: options, devices, and its exceptions as ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from wetread.errors import (
    DeviceMemoryError,
    EngineError,
    EngineUnavailableError,
    GraphError,
    UnsupportedOperatorError,
)

_UNKNOWN = re.compile(
    r"(?:No Op registered for|Could not find an implementation for)\s+(\w+)"
    r"|([\w.]+) ?(?:\(\d+\)|\(-1\))? is not a registered function/op"
)
_MEMORY = re.compile(r"bad_alloc|[Ff]ailed to allocate|out of memory", re.IGNORECASE)
_ERRORS = 3  # severity of log lines from which on they are written to standard error


def load() -> Any:
    """Imports onnxruntime, with its telemetry (Windows only) off.

    Raises:
        EngineUnavailableError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineUnavailableError(
            f"the onnxruntime backend cannot be imported: {error}", todo="pip install 'wetread[onnxruntime]'"
        ) from error
    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def options(ort: Any, threads: int) -> Any:
    """Options of a session: one stream of work with so many threads, deterministic kernels."""
    made = ort.SessionOptions()
    made.intra_op_num_threads = threads
    made.inter_op_num_threads = 1
    made.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    made.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    made.use_deterministic_compute = True
    made.log_severity_level = _ERRORS
    return made


def providers(ort: Any, device: str) -> list[Any]:
    """Execution providers for a device: ``cpu``, ``cuda``, or ``cuda:1``.

    Raises:
        EngineUnavailableError: the installed build has none for it.
    """
    kind, _, index = device.lower().partition(":")
    found = ort.get_available_providers()
    if kind == "cpu" and not index:
        return ["CPUExecutionProvider"]
    if kind == "cuda" and (not index or index.isdecimal()) and "CUDAExecutionProvider" in found:
        # float32 means float32: tensor cores would round operands to 10 bits of mantissa unasked
        settings = {"device_id": int(index or 0), "use_tf32": 0}
        return [("CUDAExecutionProvider", settings), "CPUExecutionProvider"]
    raise EngineUnavailableError(
        f"this build of ONNX Runtime has no device {device!r}, its providers are {', '.join(found)}",
        todo="use device 'cpu', or install onnxruntime-gpu and use 'cuda'",
    )


def session(ort: Any, source: Path | bytes, settings: Any, chosen: list[Any], where: str) -> Any:
    """A session for a network.

    Raises:
        UnsupportedOperatorError: an operator that ONNX Runtime does not know, named.
        GraphError: truncated, not ONNX, or malformed.
        EngineUnavailableError: the device's libraries do not load.
    """
    content = source if isinstance(source, bytes) else str(source)
    try:
        made = ort.InferenceSession(content, sess_options=settings, providers=chosen)
    except Exception as error:
        text = str(error)
        if found := _UNKNOWN.search(text):
            raise UnsupportedOperatorError(
                f"ONNX Runtime does not know the operator {found[1] or found[2]}",
                where=where,
                todo="export with other operators, or use another backend",
            ) from error
        raise GraphError(f"ONNX Runtime cannot read the network: {reason(text)}", where=where) from error
    first = chosen[0] if isinstance(chosen[0], str) else chosen[0][0]
    if first not in made.get_providers():  # it would fall back to the processor without a word
        raise EngineUnavailableError(
            f"ONNX Runtime has {first} but cannot load it, it would run on {made.get_providers()[0]}",
            where=where,
            todo="install the driver and the CUDA libraries of its release, or use device 'cpu'",
        )
    return made


def failure(error: BaseException, what: str, where: str = "") -> EngineError:
    """An exception of ONNX Runtime as ours."""
    text = reason(str(error))
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        todo = "use a smaller window, or fewer contexts"
        return DeviceMemoryError(f"{what}: {text}", where=where, todo=todo)
    return EngineError(f"{what}: {text}", where=where)


def reason(text: str) -> str:
    """The message without ONNX Runtime's code and source lines in front."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = " ".join(lines[:2]) or "no reason given"
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)[:600]
