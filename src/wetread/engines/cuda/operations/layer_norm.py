"""LayerNorm over the last axes, with a residual before it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from wetread.engines.cuda.operations.base import Arrays, Kernel, Operation, Target, store, wide
from wetread.engines.cuda.program import Program, Step
from wetread.kernels.rows import layer_norm

LONGEST = 8192
"""Features that the own kernel holds in registers."""


class LayerNorm(Operation):
    """y = norm(x + residual) · gamma + beta over the last axes (Ba et al. 2016); added = x + residual.

    Roles: x, [gamma], [beta] (shape of the normalised axes), [residual] like x -> y, [added].

    Attributes: axes: how many last axes are normalised together (1 where absent); eps; inverse.
    """

    name = "layer_norm"

    def reference(self, step: Step, at: Arrays) -> None:
        """In float32 or float64."""
        x = wide(at.inputs["x"])
        if "residual" in at.inputs:
            x = x + wide(at.inputs["residual"])
        if "added" in at.outputs:
            store(x, at.outputs["added"])
        shape = x.shape[x.ndim - int(step.attributes.get("axes", 1)) :]
        gamma, beta = (
            at.inputs[role].to(x.dtype).reshape(shape) if role in at.inputs else None
            for role in ("gamma", "beta")
        )
        y = torch.nn.functional.layer_norm(x, shape, gamma, beta, float(step.attributes["eps"]))
        store(y, at.outputs["y"], float(step.attributes.get("inverse", 1.0)))

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """Programs of several rows."""
        spec = program.spec(step.inputs["x"])
        features = math.prod(spec.shape[len(spec.shape) - int(step.attributes.get("axes", 1)) :])
        if not target.triton or features > LONGEST or spec.dtype == "float64":
            return []
        block = 1 << (features - 1).bit_length()
        elements = (2048, 4096, 1024, 8192)
        rows = dict.fromkeys(max(1, size // block) for size in elements)
        return [{"family": "rows", "rows": r, "warps": 8 if block >= 4096 else 4} for r in rows]

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """Launches `kernels.rows.layer_norm`."""
        i, o = at.inputs, at.outputs
        axes, eps = int(step.attributes.get("axes", 1)), float(step.attributes["eps"])
        inverse = float(step.attributes.get("inverse", 1.0))
        return lambda: layer_norm(
            i["x"], o["y"], i.get("gamma"), i.get("beta"), residual=i.get("residual"), added=o.get("added"),
            axes=axes, eps=eps, inverse=inverse, rows=int(kernel["rows"]), warps=int(kernel["warps"]),
        )  # fmt: skip


OPERATIONS = (LayerNorm(),)
