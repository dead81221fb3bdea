"""The operations of which plans consist, by name.

conv          convolution, with a norm on load, concat, residual, activation, norm statistics around it
norm          instance or group norm from its sums, residual, activation, quantisation
stats         the sums of a norm whose producer is no convolution
conv_norm     a convolution and its norm in one step, for small volumes
upconv        transposed convolution
pool, resize, pointwise, copy
matmul, mlp, layer_norm, softmax, attention
quantise, dequantise
torch         any other ONNX operator, through torch
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from wetread.engines.cuda.operations.base import Arrays, Kernel, Operation, Packs, Target, Work
from wetread.errors import EngineError

__all__ = ["Arrays", "Kernel", "Operation", "Packs", "Target", "Work", "operation"]

_HOMES = {
    "conv": "conv", "conv_norm": "conv_norm", "norm": "norm", "stats": "norm", "upconv": "upconv",
    "pool": "pool", "resize": "resize", "pointwise": "pointwise", "copy": "copy",
    "quantise": "quantise", "dequantise": "quantise",
    "matmul": "matmul", "mlp": "mlp", "layer_norm": "layer_norm", "softmax": "softmax", "attention": "attention",
    "torch": "fallback",
}  # fmt: skip
"""Module of each operation; its class is in the module's ``OPERATIONS``, a tuple of instances."""


@cache
def operation(name: str) -> Operation:
    """The operation of that name.

    Raises:
        EngineError: a plan names one that this version does not have.
    """
    if name not in _HOMES:
        raise EngineError(f"there is no operation {name!r}", todo="build the plan again with this version")
    module = import_module(f"{__name__}.{_HOMES[name]}")
    found: dict[str, Operation] = {each.name: each for each in module.OPERATIONS}
    return found[name]
