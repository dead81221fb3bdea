"""Standard ONNX operators that have no kernel of their own here: each runs through torch, as one step.

registry      what an operator is
elementwise   arithmetic, comparisons, logic, bits, activations
casts         types, quantisation
shape         shapes, joins, cuts, pads
indexing      gather, scatter, sorting
reduction     sums over axes, softmax
network       convolutions, pooling, norms of any rank
sampling      resize, grid sample, deformable convolution
linear        products of matrices
attention, recurrent, signal

An operator is listed only if it passes all of ONNX's own node tests for it but those it names, and only if nothing in
it hangs on values of the device, so that a CUDA graph can hold it. All others are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from wetread.engines.cuda.operations.base import Arrays, Operation
from wetread.engines.cuda.operations.fallback import (
    attention,
    casts,
    elementwise,
    indexing,
    linear,
    network,
    recurrent,
    reduction,
    sampling,
    shape,
    signal,
)
from wetread.engines.cuda.operations.fallback.registry import OPERATORS, Call, Operator, Tensor
from wetread.engines.cuda.program import Step
from wetread.errors import EngineError

MODULES = (
    elementwise, casts, shape, indexing, reduction, network, sampling, linear, attention, recurrent, signal,
)  # fmt: skip
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
_HALVES = (torch.float16, torch.bfloat16)
_CASTS = ("Cast", "CastLike", "BitCast", "QuantizeLinear", "DequantizeLinear")


class Fallback(Operation):
    """An ONNX operator through torch; roles are the numbers of the node's inputs and outputs, from "0".

    Attributes:
        operator: name in ONNX's standard domain.
        onnx: the node's attributes, plain; a tensor is {"value": flat list, "shape": list, "dtype": torch's name}.
        opset: version of the standard operators.
        known: values of the inputs that must be constants, flat, by their number as text; they are no inputs.
        inputs: how many inputs the node has, absent optional ones included.
        outputs: how many outputs the node has, unread ones included.
    """

    name: ClassVar[str] = "torch"
    native: ClassVar[bool] = False

    def reference(self, step: Step, at: Arrays) -> None:
        """Half types are computed in float32."""
        self._run(step, at, half=False)

    def library(self, step: Step, at: Arrays) -> None:
        """Half types are computed as they are, where the operator adds few values."""
        self._run(step, at, half=True)

    def _run(self, step: Step, at: Arrays, half: bool) -> None:
        a = step.attributes
        found = lookup(str(a["operator"]))
        outputs = [at.outputs.get(str(i)) for i in range(int(a["outputs"]))]
        inputs = [at.inputs.get(str(i)) for i in range(int(a["inputs"]))]
        call = Call(
            found.name, a["onnx"], int(a["opset"]), {int(k): v for k, v in a.get("known", {}).items()},
            tuple(None if y is None else y.dtype for y in outputs),
            next(y for y in outputs if y is not None).device, at.packs,
            any(x is not None and x.dtype == torch.uint64 for x in inputs) and found.types != "moves",
        )  # fmt: skip
        given = [held(x, found, half) for x in inputs]
        args = [x for i, x in enumerate(given) if i not in found.known]
        while args and args[-1] is None:
            args.pop()
        results = found.run(call, *args)
        for y, value in zip(outputs, results if isinstance(results, tuple) else (results,), strict=False):
            if y is not None:
                if value is None or value.shape != y.shape:
                    shape = "nothing" if value is None else tuple(value.shape)
                    raise EngineError(
                        f"{found.name} gave {shape}, the plan has {tuple(y.shape)}", where=step.name
                    )
                give(value, y)


def lookup(name: str) -> Operator:
    """The operator of that name.

    Raises:
        EngineError: this version has none; lowering refuses such networks, so the plan is of another version.
    """
    if name not in OPERATORS:
        raise EngineError(f"there is no operator {name!r}", todo="build the plan again with this version")
    return OPERATORS[name]


def held(x: Tensor | None, found: Operator, half: bool) -> Tensor | None:
    """An input as the operator's function takes it: in types that torch computes with everywhere."""
    if x is None:
        return None
    if found.name in _CASTS and found.types == "moves":
        return x
    if found.types == "moves":
        if x.dtype in _SIGNED:
            return x.view(_SIGNED[x.dtype])
        return x.view(torch.uint8) if "float8" in str(x.dtype) else x
    if x.dtype == torch.uint64:
        return x.view(torch.int64)
    if x.dtype in _SIGNED:
        return x.to(torch.int64)
    if "float8" in str(x.dtype) or (x.dtype in _HALVES and not (half and found.types == "own")):
        return x.float()
    return x


def give(value: Tensor, y: Tensor) -> None:
    """Writes a result into its output."""
    if value.dtype == torch.int64 and y.dtype == torch.uint64:
        y.view(torch.int64).copy_(value)
    elif value.dtype != y.dtype and y.dtype in _SIGNED and not value.is_floating_point():
        y.view(_SIGNED[y.dtype]).copy_(value)
    elif value.dtype == torch.uint8 and "float8" in str(y.dtype):
        y.view(torch.uint8).copy_(value)
    else:
        y.copy_(value)


def supported() -> Sequence[str]:
    """Names of all operators, sorted."""
    return sorted(OPERATORS)


__all__ = ["OPERATIONS", "OPERATORS", "Fallback", "lookup", "supported"]
OPERATIONS = (Fallback(),)
