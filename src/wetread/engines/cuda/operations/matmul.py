"""Products of matrices, with a LayerNorm before and bias, activation and residual after them.

A product contracts the last axes of its left side. So a linear layer, the merging of patches (eight strided
neighbours side by side) and a patch embedding (a convolution whose stride is its kernel) are the same step on
different views.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from wetread.engines.cuda.operations.base import (
    Arrays,
    Kernel,
    Operation,
    Target,
    Tensor,
    Work,
    activate,
    store,
    wide,
)
from wetread.engines.cuda.program import Program, Step
from wetread.kernels.matmul import ACTIVATIONS, Product, RowTile, linear, pack_linear

_HALVES = (torch.float16, torch.bfloat16)
FEW_ROWS = 4096


class Matmul(Operation):
    """y = act(norm?(a) · b · scale + bias + residual).

    Roles:
        a: (..., M, K), or (rows..., K axes...) where `contract` says how many last axes make up K.
        b: weight (K, N); or a tensor (..., K, N), then without norm and with `contract` 1.
        scale: [N] float32, of 8-bit operands.
        bias: [N].
        residual: like y.
        gamma, beta: [K], of the norm.
        y: (..., M, N), or (rows..., N).

    Attributes: contract (1 where absent); norm: None or {eps}, over all of K; activation; inverse; tf32: float32
    operands may be rounded to TF32.
    """

    name = "matmul"

    def reference(self, step: Step, at: Arrays) -> None:
        """In float32 or float64."""
        x = _rows(wide(at.inputs["a"]), step)
        norm = step.attributes.get("norm")
        if norm is not None:
            x = torch.nn.functional.layer_norm(
                x, x.shape[-1:], _wide(at, "gamma", x), _wide(at, "beta", x), float(norm["eps"])
            )
        y = torch.matmul(x, wide(at.inputs["b"]).to(x.dtype))
        if "scale" in at.inputs:
            y = y * wide(at.inputs["scale"])
        for role in ("bias", "residual"):
            if role in at.inputs:
                y = y + wide(at.inputs[role])
        y = activate(y, step.attributes.get("activation"))
        store(y, at.outputs["y"], float(step.attributes.get("inverse", 1.0)))

    def library(self, step: Step, at: Arrays) -> None:
        """CuBLAS in the tensors' own type; 8-bit operands as float32."""
        a, b, y = at.inputs["a"], at.inputs["b"], at.outputs["y"]
        if a.dtype != b.dtype or a.dtype not in (*_HALVES, torch.float32) or "scale" in at.inputs:
            self.reference(step, at)
            return
        x = _rows(a, step)
        norm = step.attributes.get("norm")
        if norm is not None:
            gamma, beta = (at.inputs[r].to(x.dtype) if r in at.inputs else None for r in ("gamma", "beta"))
            x = torch.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, float(norm["eps"]))
        bias = at.inputs["bias"].to(x.dtype) if "bias" in at.inputs else None
        if b.ndim == 2 and bias is not None and bias.ndim == 1:
            value = torch.addmm(bias, x.reshape(-1, x.shape[-1]), b).reshape(*x.shape[:-1], b.shape[1])
        else:
            value = torch.matmul(x, b) if bias is None else torch.matmul(x, b) + bias
        if "residual" in at.inputs:
            value = value + at.inputs["residual"]
        store(
            activate(value, step.attributes.get("activation")), y, float(step.attributes.get("inverse", 1.0))
        )

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """Tiles of the product by a weight; the library alone multiplies tensor by tensor."""
        if not target.triton or not self._taken(step, program):
            return []
        specs = {role: program.spec(name) for role, name in (*step.inputs.items(), *step.outputs.items())}
        k, n = specs["b"].shape
        rows = math.prod(specs["y"].shape[:-1])
        found: list[Kernel] = []
        size = specs["a"].torch_dtype.itemsize
        for bm, bn, bk, warps, stages in tiles(rows, k, target):
            if bn > max(64, 2 * _power(n)):
                continue
            if target.shared_bytes and (bm + bn) * bk * size * stages > target.shared_bytes:
                continue
            found.append({"family": "rows", "tile": [bm, bn, bk, warps, stages]})
        return found

    def _taken(self, step: Step, program: Program) -> bool:
        """Whether the own kernel computes it: a weight on the right, types and activation that it knows."""
        b = step.inputs["b"]
        if b not in program.weights or program.weights[b].ndim != 2:
            return False
        kinds = {program.spec(step.inputs[r]).dtype for r in ("a", "b")}
        if len(kinds) != 1 or kinds.pop() not in ("float16", "bfloat16", "float32", "int8", "float8_e4m3fn"):
            return False
        activation = step.attributes.get("activation")
        known = activation is None or activation["name"] in ACTIVATIONS
        bias = program.spec(step.inputs["bias"]) if "bias" in step.inputs else None
        return known and (bias is None or len(bias.shape) == 1)

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """Folds the norm into the weight and packs it; launches `kernels.matmul.linear`."""
        norm = step.attributes.get("norm")
        keys = (step.inputs["b"], *(step.inputs.get(r, "") for r in ("gamma", "beta", "bias", "scale")))
        packed = at.packs.get(
            ("linear", *keys),
            lambda: pack_linear(
                at.inputs["b"], *(at.inputs.get(role) for role in ("bias", "scale", "gamma", "beta")),
                folded=norm is not None,
            ),
        )  # fmt: skip
        product = Product(
            contract=int(step.attributes.get("contract", 1)),
            eps=None if norm is None else float(norm["eps"]),
            activation=step.attributes.get("activation"),
            inverse=float(step.attributes.get("inverse", 1.0)),
            tf32=bool(step.attributes.get("tf32")),
        )
        tile = RowTile(*kernel["tile"])
        a, y, residual = at.inputs["a"], at.outputs["y"], at.inputs.get("residual")
        return lambda: linear(a, packed, y, product, tile, residual)

    def work(self, step: Step, program: Program) -> Work:
        """2 · rows · K · N."""
        a, y = program.spec(step.inputs["a"]), program.spec(step.outputs["y"])
        k = math.prod(a.shape[len(a.shape) - int(step.attributes.get("contract", 1)) :])
        return Work(2 * math.prod(y.shape) * k, super().work(step, program).bytes)


_MANY = (
    (128, 64, 64, 4, 3),
    (64, 64, 64, 4, 3),
    (128, 64, 32, 4, 4),
    (128, 128, 32, 8, 3),
    (64, 128, 32, 4, 3),
)
_FEW = ((32, 64, 64, 4, 4), (64, 64, 64, 4, 3), (64, 32, 64, 4, 4), (16, 64, 128, 4, 4), (32, 32, 128, 4, 4))
_AT_ONCE = {
    64: ((128, 64, 4), (64, 64, 4), (128, 128, 8), (64, 256, 8), (128, 32, 4), (256, 64, 8), (64, 128, 4)),
    128: ((128, 64, 8), (64, 64, 4), (64, 128, 8), (128, 128, 8), (64, 32, 4), (32, 64, 4), (32, 128, 4)),
    256: ((64, 64, 8), (64, 32, 4), (32, 64, 4), (32, 32, 4), (128, 64, 8), (64, 128, 8), (16, 64, 4)),
    512: ((64, 64, 8), (32, 64, 8), (64, 32, 8), (32, 32, 4), (16, 64, 8), (16, 32, 4)),
}
"""Rows, columns and warps of a product whose K is one block of this size."""


def tiles(rows: int, k: int, target: Target) -> list[tuple[int, int, int, int, int]]:
    """Rows, columns, K of a step, warps and stages that are worth timing.

    From Hopper on K is one block, or is not pipelined: on the H200 pipelined tiles of 64 rows and more gave wrong
    values, another one in each run (relative errors up to 0.8, most where columns were 128 and more). Triton 3.6 writes
    such operands by cp.async and reads them by wgmma with no proxy fence between, which is the likely cause. What goes
    through registers is fenced; tiles of fewer rows are products of warps, which need none, and never were wrong.
    """
    if (8, 0) <= target.capability < (9, 0):
        return [tile for tile in (_MANY if rows > FEW_ROWS else _FEW) if tile[2] <= max(64, _power(k))]
    block = max(16, _power(k))
    held = _AT_ONCE[max(64, block)] if block <= 512 else _AT_ONCE[256]
    few = rows <= FEW_ROWS
    return [
        (bm, bn, min(block, 256 if block > 512 else 512), w, 1) for bm, bn, w in held if not few or bm <= 64
    ]


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _rows(a: Tensor, step: Step) -> Tensor:
    """The left side with its contracted axes as one."""
    contract = int(step.attributes.get("contract", 1))
    return a if contract == 1 else a.flatten(a.ndim - contract)


def _wide(at: Arrays, role: str, like: Tensor) -> Tensor | None:
    return at.inputs[role].to(like.dtype) if role in at.inputs else None


OPERATIONS = (Matmul(),)
