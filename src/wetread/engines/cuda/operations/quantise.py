"""Eight-bit values made, and turned back, where no other step could do it on its way."""

from __future__ import annotations

from wetread.engines.cuda.operations.base import Arrays, Operation, store, wide
from wetread.engines.cuda.program import Step


class Quantise(Operation):
    """y = round(x · inverse), saturated: what ONNX's QuantizeLinear does with zero point 0.

    Roles: x -> y, of an eight-bit type. Attributes: inverse (1 / scale).
    """

    name = "quantise"

    def reference(self, step: Step, at: Arrays) -> None:
        """In float32, rounded half to even."""
        store(wide(at.inputs["x"]), at.outputs["y"], float(step.attributes["inverse"]))


class Dequantise(Operation):
    """y = x · scale.

    Roles: x, of an eight-bit type -> y. Attributes: scale.
    """

    name = "dequantise"

    def reference(self, step: Step, at: Arrays) -> None:
        """In float32."""
        x = at.inputs["x"]
        at.outputs["y"].copy_(x.float() * float(step.attributes["scale"]))


OPERATIONS = (Quantise(), Dequantise())
