"""ONNX files read with their external data, and refused where they are damaged or reach out of their folder."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import external_data_helper

from wetread.errors import GraphError

_LIMIT = 2**31 - 1


def read_file(path: Path) -> onnx.ModelProto:
    """Reads a model with all its weights in memory.

    Weights kept in other files are taken only from the model's own folder or below.

    Raises:
        GraphError: missing, truncated, not ONNX, larger than protocol buffers allow (2 GiB), or external data
            that is missing or lies outside the folder.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GraphError(f"the network cannot be read: {error.strerror}", where=str(path)) from error
    model = parse(content, str(path))
    for tensor in external_tensors(model):
        _check_external(tensor, path)
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise GraphError(f"external weights cannot be read: {error}", where=str(path)) from error
    return model


def parse(content: bytes, where: str) -> onnx.ModelProto:
    """Reads a model from bytes.

    Raises:
        GraphError: truncated, empty, or not ONNX.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise GraphError(
            f"this is no complete ONNX file ({len(content)} bytes)",
            where=where,
            todo="export the network again, or copy the file again",
        ) from error
    if not model.HasField("graph") or not model.graph.output:
        raise GraphError(
            f"this ONNX file holds no network ({len(content)} bytes)",
            where=where,
            todo="export the network again",
        )
    return model


def external_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Initialisers whose values lie in another file."""
    return [
        tensor
        for tensor in [*model.graph.initializer, *_constants(model)]
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]


def _constants(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [
        attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")
    ]


def _check_external(tensor: onnx.TensorProto, path: Path) -> None:
    """Refuses a tensor whose file lies outside the model's folder, or is too short for it."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    folder = path.parent.resolve()
    file = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not file.is_relative_to(folder):
        raise GraphError(
            f"weight {tensor.name!r} is said to lie in {location!r}, outside the network's folder",
            where=str(path),
            todo="keep external weights beside the network; do not trust this file if you did not make it",
        )
    try:
        size = file.stat().st_size
        end = int(fields.get("offset", 0)) + int(fields.get("length", 0))
    except (OSError, ValueError) as error:
        raise GraphError(
            f"weight {tensor.name!r} has no file {location!r}: {error}", where=str(path)
        ) from error
    if end > size:
        raise GraphError(
            f"weight {tensor.name!r} ends at byte {end} of {location!r}, which has {size}", where=str(path)
        )


def to_bytes(model: onnx.ModelProto) -> bytes:
    """The same bytes for the same model.

    Raises:
        GraphError: the model is larger than protocol buffers allow.
    """
    if model.ByteSize() > _LIMIT:
        raise GraphError(f"the network has {model.ByteSize()} bytes; one file holds at most {_LIMIT}")
    return bytes(model.SerializeToString(deterministic=True))
