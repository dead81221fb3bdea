"""Chains of elementwise operations as one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

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
from wetread.engines.cuda.operations.pool import kernel_types
from wetread.engines.cuda.program import Json, Program, Step
from wetread.errors import EngineError

_TORCH: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "min": torch.minimum, "max": torch.maximum, "pow": torch.pow,
    "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal, "erf": torch.erf, "floor": torch.floor, "ceil": torch.ceil, "round": torch.round,
    "sin": torch.sin, "cos": torch.cos, "softplus": torch.nn.functional.softplus,
    "greater": torch.gt, "less": torch.lt, "equal": torch.eq,
    "greater_or_equal": torch.ge, "less_or_equal": torch.le,
    "where": lambda c, a, b: torch.where(c != 0, a, b),
}  # fmt: skip
_ACTIVATIONS = (
    "relu", "leaky", "elu", "sigmoid", "tanh", "silu", "mish", "gelu", "clip", "hard_sigmoid", "hard_swish",
)  # fmt: skip
INSTRUCTIONS = (*_TORCH, *_ACTIVATIONS)
"""Names of all instructions."""


class Pointwise(Operation):
    """Inputs "0", "1", .. -> y: a small program of elementwise instructions, evaluated in float32.

    Roles: inputs broadcast to y as numpy's do (logical shapes). Registers 0 .. n-1 are the inputs; each instruction
    writes the next one; the last is y.

    Attributes:
        program: list of instructions [name, operand, ..] or [name, operand, .., {parameters}]. An operand is a
            register's number, or {"value": x} for a constant. Names: `INSTRUCTIONS`; those of `base.activate` take
            its parameters. Comparisons give 1 and 0; ``where`` takes condition, value, other.
        inverse: an 8-bit y holds the result times it, 1 where absent.
        scales: what each 8-bit input is multiplied by as it is read, 1 where absent.
    """

    name: ClassVar[str] = "pointwise"

    def reference(self, step: Step, at: Arrays) -> None:
        """See the class."""
        a = step.attributes
        registers = [wide(at.inputs[str(i)]) for i in range(len(at.inputs))]
        for i, scale in enumerate(a.get("scales") or ()):
            registers[i] = registers[i] * float(scale)
        y = at.outputs["y"]
        store(evaluate(a["program"], registers).expand(y.shape), y, float(a.get("inverse", 1.0)))

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """Rows by channels, in several tiles; none where there are too many inputs or axes for the kernel."""
        from wetread.kernels.pointwise import applies

        y = program.spec(step.outputs["y"])
        ins = [program.spec(step.inputs[str(i)]) for i in range(len(step.inputs))]
        strides = [y.strides, *(broadcast_strides(s.shape, s.strides, y.shape) for s in ins)]
        if (
            not target.triton
            or not applies(y.shape, strides)
            or not kernel_types(target, *(s.dtype for s in (y, *ins)))
        ):
            return []
        return [
            {"family": "pointwise", "block": b, "warps": w}
            for b, w in ((1024, 4), (2048, 4), (4096, 8), (512, 4))
        ]

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """See `wetread.kernels.pointwise`."""
        from wetread.kernels.pointwise import pointwise

        y, a = at.outputs["y"], step.attributes
        inputs = [at.inputs[str(i)].expand(y.shape) for i in range(len(at.inputs))]
        encoded = encode(a["program"], len(inputs), a.get("scales") or ())
        block, warps, inverse = int(kernel["block"]), int(kernel["warps"]), float(a.get("inverse", 1.0))
        return lambda: pointwise(inputs, y, encoded, inverse=inverse, block=block, warps=warps)

    def work(self, step: Step, program: Program) -> Work:
        """One operation an instruction and element."""
        elements = math.prod(program.spec(step.outputs["y"]).shape)
        return Work(len(step.attributes["program"]) * elements, super().work(step, program).bytes)


def broadcast_strides(shape: Sequence[int], strides: Sequence[int], to: Sequence[int]) -> tuple[int, ...]:
    """Strides of a tensor seen in a shape that it broadcasts to: 0 along repeated axes."""
    missing = len(to) - len(shape)
    found = [0 if n == 1 and m != 1 else s for n, s, m in zip(shape, strides, to[missing:], strict=True)]
    return (*[0] * missing, *found)


def evaluate(program: Sequence[Json], registers: Sequence[Tensor]) -> Tensor:
    """Runs the instructions on torch tensors; see `Pointwise`.

    Raises:
        EngineError: an instruction that this version does not know.
    """
    known = list(registers)
    for name, *operands in program:
        parameters = {}
        if operands and isinstance(operands[-1], dict) and "value" not in operands[-1]:
            parameters = operands.pop()
        like = next((known[o] for o in operands if not isinstance(o, dict)), known[0])
        values = [
            torch.full((), float(o["value"]), dtype=like.dtype, device=like.device)
            if isinstance(o, dict)
            else known[o]
            for o in operands
        ]
        if name in _ACTIVATIONS:
            known.append(activate(values[0], {"name": name, **parameters}))
        elif name in _TORCH:
            known.append(_TORCH[name](*values).to(like.dtype))
        else:
            raise EngineError(
                f"there is no instruction {name!r}", todo="build the plan again with this version"
            )
    return known[-1]


def encode(program: Sequence[Json], inputs: int, scales: Sequence[float] = ()) -> tuple[tuple[Any, ...], ...]:
    """The instructions as the kernel reads them: (name, a, b, c, p, q) each.

    Operands are registers' numbers, constants are registers too: (``value``, .., p) makes one. Activations are
    spelt out in the kernel, with their parameters in p and q.
    """
    found: list[tuple[Any, ...]] = []
    place: dict[int, int] = {i: i for i in range(inputs)}
    count = inputs

    def emit(name: str, *operands: int, p: float = 0.0, q: float = 0.0) -> int:
        nonlocal count
        found.append((name, *operands, *[0] * (3 - len(operands)), float(p), float(q)))
        count += 1
        return count - 1

    for i, scale in enumerate(scales):
        if scale != 1.0:
            place[i] = emit("mul", i, emit("value", p=scale))
    for number, (name, *operands) in enumerate(program, inputs):
        parameters = {}
        if operands and isinstance(operands[-1], dict) and "value" not in operands[-1]:
            parameters = operands.pop()
        registers = [emit("value", p=o["value"]) if isinstance(o, dict) else place[o] for o in operands]
        low, high = parameters.get("low"), parameters.get("high")
        if name == "clip":
            p, q = (-math.inf if low is None else low), (math.inf if high is None else high)
        elif name == "gelu":
            p, q = (1.0 if parameters.get("approximate") == "tanh" else 0.0), 0.0
        else:
            p = parameters.get("slope", parameters.get("alpha", 1.0 if name == "elu" else 0.0))
            q = parameters.get("beta", 0.0)
        place[number] = emit(name, *registers, p=p, q=q)
    return tuple(found)


OPERATIONS = (Pointwise(),)
