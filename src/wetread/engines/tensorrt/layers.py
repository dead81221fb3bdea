"""What TensorRT executes: its engine inspector's report in our words."""

from __future__ import annotations

import json
import re
from typing import Any

from wetread.engines.base import LayerRun

_TYPES = (
    ("int8", "int8"), ("fp8", "float8"), ("half", "float16"), ("fp16", "float16"), ("bf16", "bfloat16"),
    ("float", "float32"), ("fp32", "float32"), ("int32", "int32"), ("int64", "int64"),
)  # fmt: skip
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")  # how the ONNX parser marks where a layer comes from


def layers_of(report: str) -> tuple[LayerRun, ...]:
    """Layers of an engine that was built with detailed profiling, from the inspector's JSON."""
    found = []
    for layer in json.loads(report or "{}").get("Layers", []):
        if isinstance(layer, str):  # all there is of engines built without details
            found.append(LayerRun(name=layer, type="", precision=""))
            continue
        nodes = _NODE.findall(str(layer.get("Metadata", "")))
        found.append(
            LayerRun(
                name=str(layer.get("Name", "")),
                type=str(layer.get("LayerType", "")),
                precision=_precision(layer),
                kernel=str(layer.get("TacticName", "")),
                nodes=tuple(dict.fromkeys(nodes)),
            )
        )
    return tuple(found)


def _precision(layer: dict[str, Any]) -> str:
    """Type of the first input, which is what a strongly typed layer multiplies."""
    tensors = layer.get("Inputs") or layer.get("Outputs") or [{}]
    text = str(tensors[0].get("Format/Datatype", "")).lower()
    return next((name for key, name in _TYPES if key in text), text)
