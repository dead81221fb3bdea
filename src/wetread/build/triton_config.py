"""Triton's ``config.pbtxt``: a `ModelConfig` in the text form of protocol buffers.

The form is written here and not by NVIDIA's package, which pins a protobuf of its own; a test reads it back with
the message types of that package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wetread.errors import GraphError

_TYPES = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16", "float64": "TYPE_FP64",
    "int8": "TYPE_INT8", "uint8": "TYPE_UINT8", "int16": "TYPE_INT16", "uint16": "TYPE_UINT16",
    "int32": "TYPE_INT32", "uint32": "TYPE_UINT32", "int64": "TYPE_INT64", "uint64": "TYPE_UINT64",
    "bool": "TYPE_BOOL",
}  # fmt: skip
_SERVED = {  # lines that choose Triton's backend, and where instances run
    "onnxruntime": ('platform: "onnxruntime_onnx"', "KIND_AUTO"),
    "openvino": ('backend: "openvino"', "KIND_CPU"),
    "tensorrt": ('platform: "tensorrt_plan"', "KIND_GPU"),
}


@dataclass(frozen=True)
class TritonTensor:
    """An input or output: name, numpy type name, sizes with −1 where free; without batch where Triton batches."""

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class TritonStep:
    """One model of an ensemble; its tensors' names to the ensemble's."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class TritonConfig:
    """One model's configuration.

    Attributes:
        name: of the model and its folder.
        backend: which of Triton's backends runs it.
        file: name of the network's file in the version's folder.
        max_batch: largest batch; 0 where the batch axis is not Triton's.
        inputs, outputs: tensors.
        instances: copies that run at once.
        queue_delay_us: microseconds to wait for a batch; None forms none.
        parameters: strings that clients may ask for.
    """

    name: str
    backend: str
    file: str
    max_batch: int
    inputs: tuple[TritonTensor, ...]
    outputs: tuple[TritonTensor, ...]
    instances: int
    queue_delay_us: int | None
    parameters: Mapping[str, str]


def model_text(config: TritonConfig) -> str:
    """The configuration of a network.

    Raises:
        GraphError: Triton has no type for a tensor.
    """
    backend, kind = _SERVED[config.backend]
    lines = [
        f"name: {quoted(config.name)}",
        backend,
        f"default_model_filename: {quoted(config.file)}",
        f"max_batch_size: {config.max_batch}",
        *_tensors("input", config.inputs, ""),
        *_tensors("output", config.outputs, "labels.txt"),
        f"instance_group {{\n  count: {config.instances}\n  kind: {kind}\n}}",
    ]
    if config.queue_delay_us is not None:
        lines.append(f"dynamic_batching {{\n  max_queue_delay_microseconds: {config.queue_delay_us}\n}}")
    return "\n".join([*lines, *_parameters(config.parameters)]) + "\n"


def ensemble_text(config: TritonConfig, steps: Sequence[TritonStep]) -> str:
    """The configuration of an ensemble: no file, tensors routed between models.

    Raises:
        GraphError: Triton has no type for a tensor.
    """
    lines = [
        f"name: {quoted(config.name)}",
        'platform: "ensemble"',
        f"max_batch_size: {config.max_batch}",
        *_tensors("input", config.inputs, ""),
        *_tensors("output", config.outputs, ""),
        "ensemble_scheduling {",
    ]
    for step in steps:
        lines += ["  step {", f"    model_name: {quoted(step.model)}", "    model_version: -1"]
        for kind, names in (("input_map", step.inputs), ("output_map", step.outputs)):
            lines += [
                f"    {kind} {{\n      key: {quoted(key)}\n      value: {quoted(value)}\n    }}"
                for key, value in names.items()
            ]
        lines.append("  }")
    return "\n".join([*lines, "}", *_parameters(config.parameters)]) + "\n"


def _tensors(kind: str, tensors: Sequence[TritonTensor], labels: str) -> list[str]:
    """Blocks of inputs or outputs; the label file belongs to the first."""
    blocks = []
    for i, tensor in enumerate(tensors):
        if tensor.dtype not in _TYPES:
            raise GraphError(
                f"Triton has no type {tensor.dtype}",
                where=tensor.name,
                todo="export the network with float32 inputs and outputs",
            )
        lines = [f"  name: {quoted(tensor.name)}", f"  data_type: {_TYPES[tensor.dtype]}"]
        lines.append(f"  dims: [{', '.join(str(size) for size in tensor.dims)}]")
        if labels and i == 0:
            lines.append(f"  label_filename: {quoted(labels)}")
        blocks.append("\n".join([f"{kind} {{", *lines, "}"]))
    return blocks


def _parameters(parameters: Mapping[str, str]) -> list[str]:
    return [
        f"parameters {{\n  key: {quoted(key)}\n  value {{\n    string_value: {quoted(value)}\n  }}\n}}"
        for key, value in parameters.items()
    ]


def quoted(text: str) -> str:
    """A string of the text form: UTF-8 bytes, whatever is not plain ASCII escaped in octal."""
    plain = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\' else f"\\{byte:03o}"
        for byte in text.encode("utf-8")
    )
    return '"' + "".join(plain) + '"'
