"""What a plan executes, step by step, in our words."""

from __future__ import annotations

from collections.abc import Mapping

from wetread.engines.base import LayerRun
from wetread.engines.cuda.operations import operation
from wetread.engines.cuda.program import Json, Program, Step

_NAMES = {"uint8": "int8", "float8_e4m3fn": "float8"}


def layers_of(program: Program) -> tuple[LayerRun, ...]:
    """The steps in their order; `LayerRun.kernel` is ``torch``, ``library``, or the own kernel and its tile."""
    return tuple(
        LayerRun(step.name, _type(step), precision_of(program, step), kernel_of(step), step.nodes)
        for step in program.steps
    )


def _type(step: Step) -> str:
    return f"torch.{step.attributes.get('operator', '')}" if step.op == "torch" else step.op


def kernel_of(step: Step) -> str:
    """Which kernel runs a step."""
    if not operation(step.op).native:
        return "torch"
    return "library" if step.kernel is None else kernel_text(step.kernel)


def kernel_text(kernel: Mapping[str, Json]) -> str:
    """Family and tile in one word each, such as ``taps shape=4x8x8 bn=64``."""
    parts = [str(kernel.get("family", "own"))]
    for key, value in kernel.items():
        if key != "family" and value not in (None, False):
            text = "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            parts.append(f"{key}={text}")
    return " ".join(parts)


def precision_of(program: Program, step: Step) -> str:
    """Element type in which a step multiplies, or else reads: the narrowest of its inputs' types.

    Scales, biases and sums are wide whatever is multiplied.
    """
    roles = [role for role in ("x", "a", "q", "0") if role in step.inputs] or list(step.inputs)[:1]
    if not roles:
        return program.precision
    found = program.spec(step.inputs[roles[0]]).dtype
    weight = step.inputs.get("weight", step.inputs.get("b", ""))
    if found == "uint8" and weight and program.spec(weight).dtype not in ("int8", "uint8"):
        found = program.spec(weight).dtype  # integers that a kernel holds as half floats
    if found == "float32" and program.precision == "tf32":
        return "tf32"
    return _NAMES.get(found, found)
