"""What OpenVINO executes: its execution graph in our words."""

from __future__ import annotations

from typing import Any

from wetread.engines.base import LayerRun

_PASSIVE = {"Const", "Input", "Output"}
_NAMES = {
    "i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4", "f32": "float32", "f16": "float16",
    "bf16": "bfloat16", "f8e4m3": "float8", "f8e5m2": "float8", "f64": "float64", "i32": "int32",
    "i64": "int64",
}  # fmt: skip
_BIAS = "/WithoutBiases"  # OpenVINO's name for a convolution whose bias became a node of its own


def layers_of(compiled: Any) -> tuple[LayerRun, ...]:
    """Steps of a compiled network in the order of execution; constants, inputs and outputs are left out."""
    found = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = op.get_rt_info()
        if _text(info, "layerType") in _PASSIVE:
            continue
        kernel = _text(info, "primitiveType")
        nodes = (name.removesuffix(_BIAS) for name in _text(info, "originalLayersNames").split(","))
        found.append(
            (
                int(_text(info, "execOrder")),
                LayerRun(
                    name=str(op.get_friendly_name()),
                    type=_text(info, "layerType"),
                    precision=_precision(_text(info, "runtimePrecision"), kernel),
                    kernel=kernel,
                    nodes=tuple(dict.fromkeys(name for name in nodes if name)),
                ),
            )
        )
    return tuple(layer for _, layer in sorted(found, key=lambda item: item[0]))


def _precision(runtime: str, kernel: str) -> str:
    """Precision of a step.

    OpenVINO calls the type of a step's first input its runtime precision. A kernel says in its own name what
    it multiplies: one that reads integers and computes in float32 is no integer kernel.
    """
    name = _NAMES.get(runtime, runtime)
    suffix = kernel.rsplit("_", 1)[-1].lower()
    if name == "int8" and suffix in _NAMES:
        return _NAMES[suffix]
    return name


def _text(info: Any, key: str) -> str:
    return str(info[key].astype(str))
