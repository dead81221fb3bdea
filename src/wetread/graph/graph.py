"""The graph: a network as a typed ONNX model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wetread.errors import GraphError
from wetread.graph import change, files
from wetread.graph.shapes import infer_window
from wetread.package import Precision, TensorEntry

_QUANTISED: dict[int, Precision] = {
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.FLOAT8E4M3FN: "float8",
    onnx.TensorProto.FLOAT8E5M2: "float8",
}
_WIDTHS: dict[int, Precision] = {
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.FLOAT16: "float16",
}


class Graph:
    """A network as a typed ONNX model, with all weights in memory; treated as immutable.

    Functions inside the model are inlined, so that its nodes are standard operators. Only functions of the
    domain ``wetread``, which the passes write, stay calls; `inlined` resolves them for engines that know none.

    Args:
        model: the model; the caller does not change it afterwards.
        where: file or name for messages.

    Raises:
        GraphError: a tensor of the interface has no type, or functions cannot be inlined.
    """

    def __init__(self, model: onnx.ModelProto, where: str = "network") -> None:
        self.where = where
        if model.functions:
            model = change.inline(model, where, keep_own=True)
        self.model = model
        weights = {tensor.name for tensor in model.graph.initializer}
        self.inputs = tuple(
            self._entry(value) for value in model.graph.input if value.name not in weights
        )  # fmt: skip
        self.outputs = tuple(self._entry(value) for value in model.graph.output)

    @classmethod
    def load(cls, path: Path) -> Graph:
        """Reads an ONNX file and its external weights.

        Raises:
            GraphError: missing, truncated, not ONNX, or weights outside its folder.
        """
        return cls(files.read_file(Path(path)), str(path))

    @classmethod
    def from_bytes(cls, content: bytes, where: str = "network") -> Graph:
        """Reads ONNX bytes.

        Raises:
            GraphError: truncated, or not ONNX, or weights in other files.
        """
        model = files.parse(content, where)
        if external := files.external_tensors(model):
            raise GraphError(
                f"weight {external[0].name!r} lies in another file",
                where=where,
                todo="load the file by its path",
            )
        return cls(model, where)

    @classmethod
    def from_ir(cls, model: Any, where: str = "network") -> Graph:
        """Takes an `onnx_ir.Model`, as passes work on."""
        import onnx_ir

        return cls(onnx_ir.to_proto(model), where)

    def ir(self) -> Any:
        """A copy as `onnx_ir.Model`, for passes."""
        import onnx_ir

        return onnx_ir.from_proto(self.model)

    def to_bytes(self) -> bytes:
        """ONNX bytes with all weights; the same for the same graph."""
        return files.to_bytes(self.model)

    def save(self, path: Path) -> Path:
        """Writes one ONNX file with all weights in it, and returns the path."""
        path.write_bytes(self.to_bytes())
        return path

    def stripped(self) -> Graph:
        """A copy without documentation strings and metadata, in which exporters leave paths and stack traces."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        graph = model.graph
        for item in (
            model,
            graph,
            *graph.node,
            *graph.initializer,
            *graph.input,
            *graph.output,
            *graph.value_info,
        ):
            item.ClearField("doc_string")
            item.ClearField("metadata_props")
        for tensor in graph.initializer:  # set, though empty of meaning, on weights that lay in another file
            tensor.ClearField("data_location")
        return Graph(model, self.where)

    def inlined(self) -> Graph:
        """The same network in standard operators only, for engines that know no functions."""
        if not self.model.functions:
            return self
        return Graph(change.inline(self.model, self.where, keep_own=False), self.where)

    def with_outputs(self, names: Sequence[str]) -> Graph:
        """The same network with further values as outputs after its own, for observing them.

        Raises:
            GraphError: no node writes a name, or its type cannot be inferred.
        """
        return Graph(change.with_outputs(self.model, names, self.where), self.where)

    def cut(self, outputs: Sequence[str]) -> Graph:
        """Only these outputs, in this order; nodes and weights that none of them needs are gone.

        Args:
            outputs: names of outputs or of inner values.

        Raises:
            GraphError: no node writes a name.
        """
        return Graph(change.cut(self.model, outputs, self.where), self.where)

    def fixed(self, window: Sequence[int], batch: int | None = None) -> Graph:
        """The same network for one spatial shape.

        Args:
            window: sizes of the spatial axes of every input.
            batch: size of the batch axis; None leaves it as it is.

        Raises:
            GraphError: shapes do not agree for this window; names the node.
        """
        names = {entry.name for entry in self.inputs}
        return Graph(change.fixed(self.model, names, window, batch, self.where), self.where)

    def output_shapes(self, window: Sequence[int]) -> dict[str, tuple[int | None, ...]]:
        """Shapes of the outputs for one window, by inference alone; None where it does not tell.

        Args:
            window: sizes of the spatial axes of every input.

        Raises:
            GraphError: shapes do not agree for this window; names the node.
        """
        found = infer_window(self.model, {e.name for e in self.inputs}, window, self.where)
        return {
            value.name: tuple(
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in value.type.tensor_type.shape.dim
            )
            for value in found.graph.output
        }

    def _entry(self, value: onnx.ValueInfoProto) -> TensorEntry:
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.elem_type:
            raise GraphError("is no tensor, or has no type", where=f"{self.where}: {value.name}")
        if not kind.HasField("shape"):
            raise GraphError(
                "has no shape, not even its number of axes", where=f"{self.where}: {value.name}",
                todo="export the network with shapes of its inputs and outputs",
            )  # fmt: skip
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
        try:
            return TensorEntry(name=value.name, shape=shape, dtype=numpy_name(kind.elem_type))
        except (KeyError, ValueError) as error:
            raise GraphError(
                f"name, shape or type of an input or output is damaged: {error}", where=self.where
            ) from error

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """The nodes in their order."""
        return cast("Sequence[onnx.NodeProto]", self.model.graph.node)

    @property
    def opset(self) -> int:
        """Version of the standard operators; 0 where the model names none."""
        return max((e.version for e in self.model.opset_import if e.domain in ("", "ai.onnx")), default=0)

    @cached_property
    def operators(self) -> Counter[str]:
        """How many nodes there are of each operator."""
        return Counter(node.op_type for node in self.nodes)

    @cached_property
    def weights(self) -> Mapping[str, np.ndarray]:
        """Initialisers by name; the arrays are the model's own, read them only."""
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}

    @property
    def weight_bytes(self) -> int:
        """Bytes of all initialisers."""
        return sum(array.nbytes for array in self.weights.values())

    @property
    def precision(self) -> Precision:
        """Precision by the types in the graph.

        ``int8`` or ``float8`` where it has quantise nodes of that type; else the type that holds most of the
        weights, because a float16 network keeps its norms in float32.
        """
        types: dict[str, int] = {tensor.name: tensor.data_type for tensor in self.model.graph.initializer}
        for node in self.nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                zero = types.get(node.input[2]) if len(node.input) > 2 else onnx.TensorProto.UINT8
                return _QUANTISED.get(zero or onnx.TensorProto.UINT8, "int8")
        sizes: Counter[int] = Counter()
        for tensor in self.model.graph.initializer:
            if tensor.data_type in _WIDTHS:
                sizes[tensor.data_type] += int(np.prod(tensor.dims, dtype=np.int64))
        if not sizes:
            return cast("Precision", self.inputs[0].dtype) if self.inputs else "float32"
        return _WIDTHS[sizes.most_common(1)[0][0]]

    def evaluate(self, inputs: Mapping[str, np.ndarray], keep: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Runs the network in float64, see `wetread.graph.evaluate.evaluate`."""
        from wetread.graph.evaluate import evaluate

        return evaluate(self, inputs, keep)


def numpy_name(element: int) -> str:
    """Numpy name of an ONNX element type."""
    return str(helper.tensor_dtype_to_np_dtype(element).name)


def node_name(node: onnx.NodeProto) -> str:
    """Name of a node for messages; its first output where it has none."""
    label = node.name or (f"→ {node.output[0]}" if node.output else "?")
    return f"{node.op_type} {label!r}"
