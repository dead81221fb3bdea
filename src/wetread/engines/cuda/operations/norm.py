"""Instance and group norms from their sums, and the sums of a tensor whose producer does not take them."""

from __future__ import annotations

from typing import ClassVar

from wetread.engines.cuda.operations.base import Arrays, Operation, activate, store, wide
from wetread.engines.cuda.operations.statistics import (
    add_sums,
    add_sums_narrow,
    normalised,
    normalised_narrow,
)  # fmt: skip
from wetread.engines.cuda.program import Step


class Norm(Operation):
    """y = act(norm(x) + residual), or + norm(residual) where the residual has sums of its own.

    Roles: x, sums [replicas, N, C, 2] float64, gamma, beta [C] float32, residual, residual_sums, residual_gamma,
    residual_beta; y. Attributes: eps, groups (C for an instance norm), activation, inverse (1 / scale of an 8-bit
    y). Both norms have the same eps and groups.
    """

    name: ClassVar[str] = "norm"

    def reference(self, step: Step, at: Arrays) -> None:
        """See `Operation.reference`."""
        i, a = at.inputs, step.attributes
        value = normalised(i["x"], i["sums"], i.get("gamma"), i.get("beta"), a)
        if "residual_sums" in i:
            value = value + normalised(
                i["residual"], i["residual_sums"], i.get("residual_gamma"), i.get("residual_beta"), a
            )
        elif "residual" in i:
            value = value + wide(i["residual"])
        store(activate(value, a.get("activation")), at.outputs["y"], float(a.get("inverse", 1.0)))

    def library(self, step: Step, at: Arrays) -> None:
        """See `Operation.library`."""
        i, a = at.inputs, step.attributes
        value = normalised_narrow(i["x"], i["sums"], i.get("gamma"), i.get("beta"), a)
        if "residual_sums" in i:
            value += normalised_narrow(
                i["residual"], i["residual_sums"], i.get("residual_gamma"), i.get("residual_beta"), a
            )
        elif "residual" in i:
            value += i["residual"].to(value.dtype)
        store(activate(value, a.get("activation")), at.outputs["y"], float(a.get("inverse", 1.0)))


class Stats(Operation):
    """sums += (sum, sum of squares) of x for each window and channel. Roles: x; sums."""

    name: ClassVar[str] = "stats"

    def reference(self, step: Step, at: Arrays) -> None:
        """See `Operation.reference`."""
        add_sums(at.outputs["sums"], wide(at.inputs["x"]))

    def library(self, step: Step, at: Arrays) -> None:
        """See `Operation.library`."""
        add_sums_narrow(at.outputs["sums"], at.inputs["x"])


OPERATIONS = (Norm(), Stats())
