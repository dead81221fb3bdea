"""Eight-bit values made, and turned back, where no other step could do it on its way."""

from __future__ import annotations

import torch

from wetread.engines.cuda.operations.base import Arrays, Operation, store, wide
from wetread.engines.cuda.program import Step


class Quantise(Operation):
    """y = round(x · inverse), saturated: what ONNX's QuantizeLinear does with zero point 0.

    Roles: x -> y, of an eight-bit type; or of a floating one that then holds integers, where a kernel multiplies
    those exactly (first layers of few channels).

    Attributes: inverse (1 / scale); type (``int8``, ``uint8`` or ``float8_e4m3fn``: the range; y's own where absent).
    """

    name = "quantise"

    def reference(self, step: Step, at: Arrays) -> None:
        """In float32, rounded half to even."""
        x, y = at.inputs["x"], at.outputs["y"]
        value = wide(x)
        kind = getattr(torch, str(step.attributes.get("type", ""))) if "type" in step.attributes else y.dtype
        inverse = float(step.attributes["inverse"])
        if kind == y.dtype:
            store(value, y, inverse)
            return
        held = torch.empty(y.shape, dtype=kind, device=y.device)
        store(value, held, inverse)
        y.copy_(held)


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
