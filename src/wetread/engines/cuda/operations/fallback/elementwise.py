"""Element by element: arithmetic, comparisons, logic, bits, activations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from wetread.engines.cuda.operations.fallback.registry import (
    OPERATORS,
    Call,
    Given,
    Operator,
    Tensor,
    operator,
)

F = torch.nn.functional

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish, "IsNaN": torch.isnan,
    "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal,
    "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Sinh": torch.sinh, "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan,
    "Tanh": torch.tanh, "BitwiseNot": torch.bitwise_not,
}  # fmt: skip
_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "And": torch.logical_and, "Or": torch.logical_or,
    "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor, "Equal": torch.eq,
}  # fmt: skip
_ORDER: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le,
}  # fmt: skip
_LOWEST = -(1 << 63)


def _one(run: Callable[[Tensor], Tensor], _: Call, x: Tensor) -> Tensor:
    return run(x)


def _two(run: Callable[[Tensor, Tensor], Tensor], _: Call, a: Tensor, b: Tensor) -> Tensor:
    return run(a, b)


def _ordered(run: Callable[[Tensor, Tensor], Tensor], call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Compares; the bits of uint64 are ordered like int64 once their highest is turned."""
    return run(a ^ _LOWEST, b ^ _LOWEST) if call.unsigned else run(a, b)


for _name, _run in _PLAIN.items():
    OPERATORS[_name] = Operator(_name, partial(_one, _run), types="own")
for _name, _both in _TWO.items():
    OPERATORS[_name] = Operator(_name, partial(_two, _both), types="own")
for _name, _both in _ORDER.items():
    OPERATORS[_name] = Operator(_name, partial(_ordered, _both), types="own")


def _divided(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of uint64 held as int64 (Hacker's Delight, 9-3)."""
    a, b = torch.broadcast_tensors(a, b)
    above = (a ^ _LOWEST) >= (b ^ _LOWEST)
    safe = torch.where(b > 0, b, 1)
    half = torch.div((a >> 1) & ~_LOWEST, safe, rounding_mode="trunc") << 1
    rest = a - half * safe
    quotient = half + ((rest ^ _LOWEST) >= (safe ^ _LOWEST))
    quotient = torch.where(b < 0, above.long(), quotient)
    return quotient, a - quotient * b


@operator("Div", types="own")
def div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Quotient; integers are rounded towards zero."""
    if a.is_floating_point() or b.is_floating_point():
        return a / b
    return _divided(a, b)[0] if call.unsigned else torch.div(a, b, rounding_mode="trunc")


@operator("Mod", types="own")
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Remainder with the sign of b, or with that of a (fmod)."""
    if call.unsigned:
        return _divided(a, b)[1]
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@operator("Pow")
def power(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """A to the power of b, in the type of a."""
    return torch.pow(a, b)


def _turned(call: Call, values: tuple[Tensor, ...]) -> list[Tensor]:
    return [v ^ _LOWEST for v in values] if call.unsigned else list(values)


@operator("Max", types="own")
def largest(call: Call, *xs: Tensor) -> Tensor:
    """Largest of all inputs."""
    found, *others = _turned(call, xs)
    for x in others:
        found = torch.maximum(found, x)
    return found ^ _LOWEST if call.unsigned else found


@operator("Min", types="own")
def smallest(call: Call, *xs: Tensor) -> Tensor:
    """Smallest of all inputs."""
    found, *others = _turned(call, xs)
    for x in others:
        found = torch.minimum(found, x)
    return found ^ _LOWEST if call.unsigned else found


@operator("Sum", "Mean")
def total(call: Call, *xs: Tensor) -> Tensor:
    """Sum, or mean, of all inputs."""
    found = xs[0]
    for x in xs[1:]:
        found = found + x
    return found / len(xs) if call.operator == "Mean" else found


@operator("Where", types="moves")
def where(_: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A where the condition holds, else b."""
    return torch.where(condition, a, b)


@operator("Clip", types="own")
def clip(call: Call, x: Tensor, low: Given = None, high: Given = None) -> Tensor:
    """X between two bounds; the upper one wins."""
    if call.unsigned:
        x, low, high = (
            x ^ _LOWEST,
            low if low is None else low ^ _LOWEST,
            high if high is None else high ^ _LOWEST,
        )
    if low is not None:
        x = torch.maximum(x, low.to(x.dtype))
    if high is not None:
        x = torch.minimum(x, high.to(x.dtype))
    return x ^ _LOWEST if call.unsigned else x


@operator("BitShift", types="own")
def shift(call: Call, x: Tensor, by: Tensor) -> Tensor:
    """Shifts bits; zeros come in at the upper end of unsigned numbers."""
    bits = torch.iinfo(x.dtype).bits
    inside = torch.where(by < bits, by, 0)
    if call.attributes["direction"] == "LEFT":
        found = x << inside
    elif call.unsigned:
        found = torch.where(inside == 0, x, ((x >> 1) & ~_LOWEST) >> (inside - 1).clamp(min=0))
    else:
        found = x >> inside
    signs = (
        x >> (bits - 1)
        if call.attributes["direction"] == "RIGHT" and not call.unsigned
        else torch.zeros_like(x)
    )
    return torch.where(by < bits, found, signs)


@operator("IsInf", types="own")
def is_infinite(call: Call, x: Tensor) -> Tensor:
    """Whether an element is infinite, of the signs that count."""
    found = torch.isinf(x)
    if not call.get("detect_negative", 1):
        found = found & (x > 0)
    if not call.get("detect_positive", 1):
        found = found & (x < 0)
    return found


@operator("Celu", "Elu", types="own")
def elu(call: Call, x: Tensor) -> Tensor:
    """Exponential below zero."""
    alpha = float(call.get("alpha", 1.0))
    return F.celu(x, alpha) if call.operator == "Celu" else F.elu(x, alpha)


@operator("Gelu", types="own")
def gelu(call: Call, x: Tensor) -> Tensor:
    """X times the normal distribution's share below x."""
    return F.gelu(x, approximate=str(call.get("approximate", "none")))


@operator("HardSigmoid", types="own")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """A line between 0 and 1."""
    return (x * float(call.get("alpha", 0.2)) + float(call.get("beta", 0.5))).clamp(0, 1)


@operator("LeakyRelu", types="own")
def leaky(call: Call, x: Tensor) -> Tensor:
    """Slope alpha below zero."""
    return F.leaky_relu(x, float(call.get("alpha", 0.01)))


@operator("PRelu", types="own")
def prelu(_: Call, x: Tensor, slope: Tensor) -> Tensor:
    """A slope below zero for each element, broadcast."""
    return torch.where(x < 0, x * slope, x)


@operator("Selu", types="own")
def selu(call: Call, x: Tensor) -> Tensor:
    """Scaled exponential below zero."""
    alpha = float(call.get("alpha", 1.67326319217681884765625))
    gamma = float(call.get("gamma", 1.05070102214813232421875))
    return torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0))) * gamma


@operator("Shrink", types="own")
def shrink(call: Call, x: Tensor) -> Tensor:
    """Zero within lambd of zero, moved towards zero by bias outside."""
    reach, bias = float(call.get("lambd", 0.5)), float(call.get("bias", 0.0))
    zero = torch.zeros_like(x)
    return torch.where(x < -reach, x + bias, torch.where(x > reach, x - bias, zero))


@operator("Swish", types="own")
def swish(call: Call, x: Tensor) -> Tensor:
    """X times the logistic function of alpha x."""
    return x * torch.sigmoid(x * float(call.get("alpha", 1.0)))


@operator("ThresholdedRelu", types="own")
def thresholded(call: Call, x: Tensor) -> Tensor:
    """X above alpha, else zero."""
    return torch.where(x > float(call.get("alpha", 1.0)), x, torch.zeros_like(x))


@operator("Identity", types="moves", note="tensors alone, no sequences or optionals")
def identity(_: Call, x: Tensor) -> Tensor:
    """X itself."""
    return x


_TRAINING = "training mode drops elements at random"


@operator(
    "Dropout", known=(1, 2), types="moves", note="nothing is dropped: training mode is refused",
    named=dict.fromkeys(
        ("test_training_dropout_default", "test_training_dropout_default_mask", "test_training_dropout",
         "test_training_dropout_mask"), _TRAINING,
    ),
)  # fmt: skip
def dropout(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """X itself, and a mask that keeps all."""
    training = bool(call.known[2][0]) if 2 in call.known else False
    ratio = float(call.known[1][0]) if 1 in call.known else 0.5
    if training and ratio != 0.0:
        raise call.refused("it is in training mode, which drops elements at random")
    return x, torch.ones(x.shape, dtype=torch.bool, device=x.device)
