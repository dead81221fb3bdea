"""Softmax along one axis."""

from __future__ import annotations

from collections.abc import Callable

import torch

from wetread.engines.cuda.operations.base import Arrays, Kernel, Operation, Target, store, wide
from wetread.engines.cuda.program import Program, Step
from wetread.kernels.rows import softmax

LONGEST = 8192
"""Elements of the axis that the own kernel holds in registers."""


class Softmax(Operation):
    """y = exp(x − max) / Σ exp(x − max) along `axis`; its logarithm with `log`.

    Roles: x -> y. Attributes: axis; log (False where absent).
    """

    name = "softmax"

    def reference(self, step: Step, at: Arrays) -> None:
        """In float32 or float64."""
        of = torch.log_softmax if step.attributes.get("log") else torch.softmax
        store(of(wide(at.inputs["x"]), int(step.attributes["axis"])), at.outputs["y"])

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """Programs of several rows."""
        spec = program.spec(step.inputs["x"])
        length = spec.shape[int(step.attributes["axis"])]
        if not target.triton or length > LONGEST or spec.dtype == "float64":
            return []
        block = 1 << (length - 1).bit_length()
        rows = dict.fromkeys(max(1, size // block) for size in (2048, 4096, 1024))
        return [{"family": "rows", "rows": r, "warps": 4} for r in rows]

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """Launches `kernels.rows.softmax`."""
        x, y, axis = at.inputs["x"], at.outputs["y"], int(step.attributes["axis"])
        log = bool(step.attributes.get("log"))
        return lambda: softmax(x, y, axis, log=log, rows=int(kernel["rows"]), warps=int(kernel["warps"]))


OPERATIONS = (Softmax(),)
