"""Two linear layers with an activation between them, as transformers have them after attention."""

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
from wetread.engines.cuda.operations.matmul import tiles
from wetread.engines.cuda.program import Program, Step
from wetread.kernels.matmul import Product, RowTile, linear, pack_linear
from wetread.kernels.mlp import MlpTile, mlp


class Mlp(Operation):
    """y = act(norm?(a) · b1 + bias1) · b2 + bias2 + residual.

    Roles: a (rows..., K), b1 [K, H], [bias1] [H], b2 [H, N], [bias2] [N], [residual] like y, of the norm [gamma],
    [beta] [K] -> y (rows..., N).

    Attributes: norm: None or {eps}, over K; activation: of what lies between; inverse.
    """

    name = "mlp"

    def reference(self, step: Step, at: Arrays) -> None:
        """In float32 or float64."""
        self._run(step, at, wide)

    def library(self, step: Step, at: Arrays) -> None:
        """CuBLAS in the tensors' own type."""
        self._run(step, at, lambda t: t)

    def _run(self, step: Step, at: Arrays, kind: Callable[[Tensor], Tensor]) -> None:
        i = at.inputs
        x = kind(i["a"])

        def like(role: str) -> Tensor | None:
            return i[role].to(x.dtype) if role in i else None

        norm = step.attributes.get("norm")
        if norm is not None:
            x = torch.nn.functional.layer_norm(
                x, x.shape[-1:], like("gamma"), like("beta"), float(norm["eps"])
            )
        for number, activation in (("1", step.attributes.get("activation")), ("2", None)):
            bias = like(f"bias{number}")
            x = torch.matmul(x, i[f"b{number}"].to(x.dtype))
            x = activate(x if bias is None else x + bias, activation)
        if "residual" in i:
            x = x + kind(i["residual"])
        store(x, at.outputs["y"], float(step.attributes.get("inverse", 1.0)))

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """Both layers in one program, or one after the other with scratch between them."""
        if not target.triton:
            return []
        a, b = program.spec(step.inputs["a"]), program.spec(step.inputs["b1"])
        rows, stages = math.prod(a.shape[:-1]), 2 if (8, 0) <= target.capability < (9, 0) else 1
        joined: list[Kernel] = [{"family": "mlp", "tile": [*tile, stages]} for tile in _TILES]
        pairs = zip(tiles(rows, b.shape[0], target), tiles(rows, b.shape[1], target), strict=False)
        return joined + [{"family": "pair", "first": list(x), "second": list(y)} for x, y in [*pairs][:3]]

    def scratch_bytes(self, step: Step, program: Program, kernel: Kernel | None) -> int:
        """What lies between the layers, where they run one after the other."""
        if kernel is None or kernel["family"] != "pair":
            return 0
        a, b = program.spec(step.inputs["a"]), program.spec(step.inputs["b1"])
        return math.prod(a.shape[:-1]) * b.shape[1] * int(a.torch_dtype.itemsize)

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """Packs both weights; launches `kernels.mlp.mlp` or `kernels.matmul.linear` twice."""
        i, y = at.inputs, at.outputs["y"]
        norm = step.attributes.get("norm")
        names = tuple(step.inputs.get(r, "") for r in ("b1", "bias1", "gamma", "beta"))
        first = at.packs.get(
            ("linear", *names, norm is not None),
            lambda: pack_linear(
                i["b1"], i.get("bias1"), None, i.get("gamma"), i.get("beta"), folded=norm is not None
            ),
        )
        second = at.packs.get(
            ("linear", step.inputs["b2"], step.inputs.get("bias2", "")),
            lambda: pack_linear(i["b2"], i.get("bias2")),
        )
        eps = None if norm is None else float(norm["eps"])
        inverse, residual = float(step.attributes.get("inverse", 1.0)), i.get("residual")
        activation = step.attributes.get("activation")
        if kernel["family"] == "mlp":
            product = Product(eps=eps, activation=activation, inverse=inverse)
            tile = MlpTile(*kernel["tile"])
            return lambda: mlp(i["a"], (first, second), y, product, tile, residual)
        assert at.scratch is not None
        shape = (*i["a"].shape[:-1], second.features)
        between = at.scratch[: math.prod(shape) * i["a"].element_size()].view(i["a"].dtype).view(shape)
        tiles = RowTile(*kernel["first"]), RowTile(*kernel["second"])
        products = Product(eps=eps, activation=activation), Product(inverse=inverse)

        def run() -> None:
            linear(i["a"], first, between, products[0], tiles[0])
            linear(between, second, y, products[1], tiles[1], residual)

        return run

    def work(self, step: Step, program: Program) -> Work:
        """Both products."""
        b1, b2 = program.spec(step.inputs["b1"]), program.spec(step.inputs["b2"])
        rows = math.prod(program.spec(step.inputs["a"]).shape[:-1])
        flop = 2 * rows * (math.prod(b1.shape) + math.prod(b2.shape))
        return Work(flop, super().work(step, program).bytes)


_TILES = ((128, 64, 8), (64, 64, 4), (128, 32, 4), (64, 32, 4), (128, 64, 4))
"""Rows, hidden features of a step, warps; stages are those of `matmul.tiles`."""

OPERATIONS = (Mlp(),)
