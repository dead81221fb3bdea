"""A tensor written anew: another type, or another place in memory."""

from __future__ import annotations

from wetread.engines.cuda.operations.base import Arrays, Operation
from wetread.engines.cuda.program import Step


class Copy(Operation):
    """y = x; y has x's shape, and a type and strides of its own. Lowering leaves few of these.

    Roles: x -> y.
    """

    name = "copy"

    def reference(self, step: Step, at: Arrays) -> None:
        """Converted once."""
        at.outputs["y"].copy_(at.inputs["x"])


OPERATIONS = (Copy(),)
