"""Chains of elementwise operations as one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

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
        """Several sizes of blocks; none where there are too many inputs or axes for the kernel, or a general power."""
        from wetread.kernels.pointwise import applies

        y = program.spec(step.outputs["y"])
        ins = [program.spec(step.inputs[str(i)]) for i in range(len(step.inputs))]
        if not encodable(step.attributes["program"]):
            return []
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


_POWERS: dict[float, tuple[tuple[str, int], ...]] = {
    1.0: (), 2.0: (("mul", 0),), 3.0: (("mul", 0), ("mul", 0)), 0.5: (("sqrt", -1),), -1.0: (("reciprocal", -1),),
    -0.5: (("sqrt", -1), ("reciprocal", -1)),
}  # fmt: skip
"""Powers that the kernel has: instructions on the result so far, times the base where a second operand is named."""


def encodable(program: Sequence[Json]) -> bool:
    """Whether the kernel has all instructions: powers only to these few exponents, in which nothing is lost."""
    powers = [instruction[2] for instruction in program if instruction[0] == "pow"]
    return all(isinstance(b, dict) and float(b["value"]) in _POWERS for b in powers)


class _Encoder:
    """Instructions as the kernel reads them, with the place of each register of the program among the kernel's."""

    def __init__(self, inputs: int) -> None:
        self.code: list[str | int | float] = []
        self.count = inputs
        self.place = {i: i for i in range(inputs)}

    def emit(self, name: str, *operands: int, p: float = 0.0, q: float = 0.0) -> int:
        """Adds an instruction; returns its register."""
        self.code += [name, *operands, *[0] * (3 - len(operands)), float(p), float(q)]
        self.count += 1
        return self.count - 1

    def register(self, operand: Json) -> int:
        """Register of an operand; a constant gets one."""
        return self.emit("value", p=operand["value"]) if isinstance(operand, dict) else self.place[operand]

    def power(self, base: int, exponent: float) -> int:
        """Base to a power that is a few instructions."""
        now = base
        for name, other in _POWERS[exponent]:
            now = self.emit(name, now) if other < 0 else self.emit(name, now, base)
        return now


def encode(
    program: Sequence[Json], inputs: int, scales: Sequence[float] = ()
) -> tuple[str | int | float, ...]:
    """The instructions as the kernel reads them: name, a, b, c, p, q of each in turn.

    Operands are registers' numbers; ``value`` makes a register of the constant p; p and q are the parameters of
    activations.
    """
    made = _Encoder(inputs)
    for i, scale in enumerate(scales):
        if scale != 1.0:
            made.place[i] = made.emit("mul", i, made.emit("value", p=scale))
    for number, (name, *given) in enumerate(program, inputs):
        operands = list(given)
        last = operands[-1]
        parameters = operands.pop() if isinstance(last, dict) and "value" not in last else {}
        if name == "pow":
            made.place[number] = made.power(made.register(operands[0]), float(operands[1]["value"]))
            continue
        p, q = _parameters(name, parameters)
        spelt = "gelu_tanh" if name == "gelu" and parameters.get("approximate") == "tanh" else name
        made.place[number] = made.emit(spelt, *(made.register(o) for o in operands), p=p, q=q)
    return tuple(made.code)


def _parameters(name: str, given: Mapping[str, Json]) -> tuple[float, float]:
    if name == "clip":
        low, high = given.get("low"), given.get("high")
        return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))
    default = 1.0 if name == "elu" else 0.0
    return float(given.get("slope", given.get("alpha", default))), float(given.get("beta", 0.0))


OPERATIONS = (Pointwise(),)
