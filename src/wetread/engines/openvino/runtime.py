"""OpenVINO loaded quietly, and facts about models that several files need."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from typing import Any

from wetread.errors import (
    DeviceMemoryError,
    EngineError,
    EngineUnavailableError,
    GraphError,
    UnsupportedOperatorError,
)

_LOCK = threading.Lock()
_TELEMETRY = "openvino_telemetry"

NUMPY_NAMES = {
    "f16": "float16", "f32": "float32", "f64": "float64", "i8": "int8", "u8": "uint8", "i16": "int16",
    "i32": "int32", "i64": "int64", "boolean": "bool",
}  # fmt: skip


def load() -> Any:
    """Imports openvino without its usage telemetry.

    ``import openvino`` sends an event to the vendor's analytics unless each user opted out in their home
    directory. Software that reads patients' studies sends nothing: while openvino is imported, its telemetry
    package is hidden, so that openvino takes its own stub.

    Raises:
        EngineUnavailableError: openvino is not installed.
    """
    with _LOCK:
        hide = _TELEMETRY not in sys.modules
        if hide:
            sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            import openvino
        except ImportError as error:
            raise EngineUnavailableError(
                f"the openvino backend cannot be imported: {error}", todo="pip install openvino"
            ) from error
        finally:
            if hide:
                del sys.modules[_TELEMETRY]
    return openvino


def read_model(core: Any, source: Path | bytes, where: str) -> Any:
    """Reads an ONNX model into an `openvino.Model`.

    Raises:
        UnsupportedOperatorError: an operator that OpenVINO does not know, named.
        GraphError: truncated, not ONNX, or malformed.
    """
    try:
        return core.read_model(source if isinstance(source, bytes) else str(source))
    except RuntimeError as error:
        text = str(error)
        missing = _missing_operators(text)
        if missing:
            raise UnsupportedOperatorError(
                f"OpenVINO does not know the operators {', '.join(missing)}",
                where=where,
                todo="export with other operators, or use another backend",
            ) from error
        raise GraphError(f"OpenVINO cannot read the network: {_last_line(text)}", where=where) from error


def _missing_operators(text: str) -> list[str]:
    """Names from OpenVINO's message; it has said this in two ways, ``ai.onnx.Name`` and ``Name-18``."""
    found = re.search(
        r"(?:does not support the following ONNX operations|No conversion rule found for operations):(.*)",
        text,
    )
    if found is None:
        return []
    names = (name.strip().rsplit(".", 1)[-1] for name in found[1].split(","))
    return sorted({re.sub(r"-\d+$", "", name) for name in names if name})


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def failure(error: BaseException, what: str, where: str = "", todo: str = "") -> EngineError:
    """An OpenVINO exception as ours; the last line of its text is the reason."""
    reason = _last_line(str(error))
    if isinstance(error, MemoryError) or re.search(
        r"bad_alloc|[Aa]llocat(e|ion).*(fail|memory)|out of memory", reason
    ):
        return DeviceMemoryError(
            f"{what}: {reason}", where=where, todo="use a smaller window, or fewer contexts"
        )
    return EngineError(f"{what}: {reason}", where=where, todo=todo)


def element_name(element: Any) -> str:
    """Numpy name of an OpenVINO element type; the type's own name where numpy has none."""
    name = str(element.get_type_name())
    return NUMPY_NAMES.get(name, name)


def weight_bytes(model: Any) -> int:
    """Bytes of all constants of a model."""
    return sum(
        int(op.get_output_tensor(0).size or 0) if op.get_output_size() else 0
        for op in model.get_ops()
        if op.get_type_name() == "Constant"
    )


def precision_of(model: Any) -> str:
    """Precision by the types in the graph: of quantise nodes where there are some, else of the widest weights."""
    types = set()
    quantised = ""
    for op in model.get_ops():
        kind = op.get_type_name()
        if kind == "FakeQuantize":
            return "int8"
        if kind == "FakeConvert":
            quantised = "float8"
        if kind == "Constant" and len(op.get_output_shape(0)) > 1:
            types.add(op.get_output_element_type(0).get_type_name())
    if types & {"i8", "u8"}:
        return "int8"
    if quantised or types & {"f8e4m3", "f8e5m2"}:
        return "float8"
    if "f32" not in types and "f64" not in types:
        return "bfloat16" if "bf16" in types else "float16" if "f16" in types else "float32"
    return "float32"


def activation_bytes(compiled: Any) -> int:
    """Peak of live activations in bytes, from the compiled graph's execution order.

    Each tensor lives from the node that writes it to the last one that reads it; constants and the network's
    inputs and outputs, which the caller owns, are left out. Scratch space of single kernels is not known and
    not counted, in-place nodes are counted as if they were not. For a 3D U-Net with 128×128×64 windows the
    estimate is 256.0 MiB, and the process grows by 256.7 MiB at its first window.
    """
    ops = [op for op in compiled.get_runtime_model().get_ordered_ops() if op.get_output_size()]
    order = {op.get_friendly_name(): int(op.get_rt_info()["execOrder"].astype(str)) for op in ops}
    births: dict[int, int] = {}
    deaths: dict[int, int] = {}
    for op in ops:
        info = op.get_rt_info()
        if info["layerType"].astype(str) in ("Const", "Input"):
            continue
        names = info["outputPrecisions"].astype(str).split(",")
        start = order[op.get_friendly_name()]
        for port, precision in zip(op.outputs(), names, strict=False):
            shape = port.get_partial_shape()
            if not shape.is_static:
                continue
            size = shape.get_min_shape()
            count = 1
            for axis in size:
                count *= int(axis)
            ends = [order.get(use.get_node().get_friendly_name(), start) for use in port.get_target_inputs()]
            births[start] = births.get(start, 0) + count * _WIDTH.get(precision.lower(), 4)
            end = max([start, *ends])
            deaths[end] = deaths.get(end, 0) + count * _WIDTH.get(precision.lower(), 4)
    live = peak = 0
    for step in range(max(order.values(), default=0) + 1):
        live += births.get(step, 0)
        peak = max(peak, live)
        live -= deaths.get(step, 0)
    return peak


_WIDTH = {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i16": 2, "i8": 1, "u8": 1, "u1": 1}
