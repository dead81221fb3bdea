"""One step on tensors of its own: real-looking data, what the step must give, and whether a kernel gives it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from wetread.engines.cuda.operations import Arrays, Kernel, Packs, operation
from wetread.engines.cuda.plan import launcher
from wetread.engines.cuda.program import Program, Step
from wetread.errors import WetreadError

Tensor: TypeAlias = torch.Tensor
POISON = 255  # every byte: not a number in all floating types, -1 or 255 in integers
EIGHT_BITS = ("int8", "uint8", "float8_e4m3fn")
_INTEGERS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}


class WrongResultError(WetreadError):
    """A candidate's output is not what the operation means; it drops out and is seen by the tuner alone."""


@dataclass(frozen=True)
class Tolerance:
    """How far a kernel may be from the reference.

    Attributes:
        relative: L2 distance over the reference's L2 norm; a single value may be off by eight times as much, of
            its own size plus the root mean square.
        steps: of an integer output, by which any value may be off.
    """

    relative: float
    steps: int = 1


_RELATIVE = {
    # sums of thousands of products in another order, 24 bits each
    "float64": 2e-5, "float32": 2e-5,
    # inputs of 11 bits; half a unit of the result is 2.4e-4 of it, operands rounded on load another 3e-4
    "float16": 2e-3,
    # 8 bits: half a unit is 2e-3
    "bfloat16": 1.2e-2,
    # one step of 127 for a few values that lie between two
    "int8": 1e-2, "uint8": 1e-2,
    # 4 bits: a value that falls to the other side is 6 to 12 % off, one in fifty may
    "float8_e4m3fn": 2e-2,
}  # fmt: skip
_TF32 = 2e-3
_SUMS_OF_FLOAT8 = 5e-3
"""Hopper's tensor cores add products of E4M3 with 14 bits: sums of 6912 to 13824 were seen off by 2.0 to 2.5e-3."""
_MADE_ON_LOAD = {"int8": 1.5e-2, "uint8": 1.5e-2, "float8_e4m3fn": 4e-2}
"""Where the kernel makes its 8-bit operand from float16: some values fall to the other side of a half (float16
arithmetic, 6 % of them at the most), each worth one step; the whole stays near the noise of quantisation itself."""


def tolerance(step: Step, program: Program, role: str) -> Tolerance:
    """For one output of a step; the coarsest type that takes part decides."""
    types = {r: program.spec(name).dtype for r, name in (*step.inputs.items(), *step.outputs.items())}
    out = types[role]
    inputs = {types[r] for r in step.inputs if types[r] in _RELATIVE}
    # 8-bit operands are exact, and so are their products; what is rounded to 8 bits is not
    used = {d for d in inputs if d not in EIGHT_BITS} | {out}
    if role == "sums" and inputs & set(EIGHT_BITS):
        used.add("float16")
    relative = max(_RELATIVE.get(d, 0.0) for d in used)
    if "float8_e4m3fn" in inputs:
        relative = max(relative, _SUMS_OF_FLOAT8)
    if program.precision != "float32" and "float32" in used:
        relative = max(relative, _TF32)
    weight = types.get("weight", types.get("b", ""))
    x = next((types[r] for r in ("x", "a", "0") if r in step.inputs), weight)
    if weight in EIGHT_BITS and x not in EIGHT_BITS:
        return Tolerance(max(relative, _MADE_ON_LOAD[weight]), 3)
    return Tolerance(relative)


def isolate(program: Program, step: Step) -> Program:
    """The program of one step alone, with the storages and weights that it touches."""
    names = [*step.inputs.values(), *step.outputs.values()]
    tensors = {}
    for name in names:
        while name in program.tensors and name not in tensors:
            tensors[name] = program.tensors[name]
            name = tensors[name].base or name  # noqa: PLW2901  (a view is followed to its storage)
    weights = {name: program.weights[name] for name in names if name in program.weights}
    return Program(program.window, program.batch, program.precision, (), (), tensors, weights, [step])


class Trial:
    """Tensors of one step on a device, and the step's meaning computed on them.

    Args:
        step: of the program.
        program: where it comes from; its weights are used as they are.
        device: where.
        filled: False leaves inputs zero (to compile, not to compare or time).
    """

    def __init__(
        self, step: Step, program: Program, device: torch.device | str, *, filled: bool = True
    ) -> None:
        self.step = step
        self.program = isolate(program, step)
        self.device = torch.device(device)
        self.packs = Packs()
        self._storages: dict[str, Tensor] = {}
        self._tensors: dict[str, Tensor] = {n: w.to(self.device) for n, w in self.program.weights.items()}
        for name, spec in self.program.tensors.items():
            if not spec.base:
                size = max(spec.bytes, 1)
                made = torch.full(
                    (size,), 0 if spec.zeroed else POISON, dtype=torch.uint8, device=self.device
                )
                self._storages[name] = made[: spec.bytes]
        for name, spec in self.program.tensors.items():
            self._tensors[name] = spec.view(self._storages[self.program.base(name)])
        self._fill(filled)
        self._before = {name: storage.clone() for name, storage in self._storages.items()}
        self.expected: dict[str, Tensor] = {}

    def arrays(self, kernel: Kernel | None) -> Arrays:
        """The step's tensors, with the scratch that the kernel needs."""
        size = operation(self.step.op).scratch_bytes(self.step, self.program, kernel)
        scratch = None
        if size:
            scratch = torch.full((size,), POISON, dtype=torch.uint8, device=self.device)
        return Arrays(
            {role: self._tensors[name] for role, name in self.step.inputs.items()},
            {role: self._tensors[name] for role, name in self.step.outputs.items()},
            scratch,
            self.packs,
        )

    def launcher(self, kernel: Kernel | None) -> Callable[[], None]:
        """The function that launches the kernel, or the library, on the trial's tensors."""
        return launcher(self.step.with_kernel(kernel), self.arrays(kernel))

    def reset(self) -> None:
        """Outputs are poisoned, or zero where the step adds to them; inputs are as they were."""
        for name, storage in self._storages.items():
            storage.copy_(self._before[name])

    def learn(self) -> None:
        """Computes what the step must give."""
        self.reset()
        flags = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=False, allow_tf32=False
        )
        with torch.no_grad(), flags:
            allowed = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = False
            try:
                operation(self.step.op).reference(self.step, self.arrays(None))
            finally:
                torch.backends.cuda.matmul.allow_tf32 = allowed
        self.expected = self.outputs()
        self.reset()

    def outputs(self) -> dict[str, Tensor]:
        """Copies of what the outputs hold now."""
        return {role: self._tensors[name].clone() for role, name in self.step.outputs.items()}

    def compare(self) -> float:
        """Compares the outputs with the reference, and all other bytes with what they were.

        Returns:
            The largest relative L2 distance of an output.

        Raises:
            WrongResultError: a value is off by more than the tolerance, missing, or written elsewhere.
        """
        worst = 0.0
        for role, name in self.step.outputs.items():
            allowed = tolerance(self.step, self.program, role)
            got, wanted = self._tensors[name], self.expected[role]
            if role == "sums":
                worst = max(worst, _check_sums(got, wanted, allowed, self._voxels()))
            else:
                worst = max(worst, _check(got, wanted, allowed, role))
        self._check_rest()
        return worst

    def same(self, first: Mapping[str, Tensor]) -> bool:
        """Whether the outputs hold the bits that they held before; sums are added in any order and left out."""
        return all(
            torch.equal(_bits(self._tensors[self.step.outputs[role]]), _bits(value))
            for role, value in first.items()
            if role != "sums"
        )

    def _voxels(self) -> int:
        """Values of a channel that sums are taken over."""
        name = self.step.outputs.get("y", self.step.inputs.get("x", ""))
        return math.prod(self.program.spec(name).shape[2:]) if name else 1

    def _check_rest(self) -> None:
        held = {name: storage.clone() for name, storage in self._storages.items()}
        for name in self.step.outputs.values():
            spec = self.program.tensors[name]
            plain = replace(spec, dtype=_INTEGERS[spec.torch_dtype.itemsize])
            base = self.program.base(name)
            plain.view(held[base]).copy_(plain.view(self._before[base]))
        for name, storage in held.items():
            if not torch.equal(storage, self._before[name]):
                raise WrongResultError(f"writes where it should not, in the storage of {name!r}")

    def _fill(self, filled: bool) -> None:
        generator = torch.Generator(self.device)
        seed = hashlib.sha256(f"{self.step.op} {sorted(self.step.inputs)}".encode()).digest()
        generator.manual_seed(int.from_bytes(seed[:4], "little"))
        raw = {_summed(role) for role in self.step.inputs if role.endswith("sums")}
        done: set[str] = set()
        for role, name in self.step.inputs.items():
            if name in self.program.tensors and not role.endswith("sums") and name not in done:
                done.add(name)
                target = self._tensors[name]
                if filled:
                    fill(target, generator, raw=role in raw)
                else:
                    target.zero_()
        for role, name in self.step.inputs.items():
            if role.endswith("sums") and name in self.program.tensors:
                source = self.step.inputs.get(_summed(role))
                fill_sums(
                    self._tensors[name], None if source is None or not filled else self._tensors[source]
                )


def _summed(role: str) -> str:
    """Role of the tensor whose sums these are: sums of x, sums2 of x2, residual_sums of residual."""
    return role.removesuffix("sums").rstrip("_") or "x"


def fill(target: Tensor, generator: torch.Generator, raw: bool = False) -> None:
    """Values as networks have them: normalised and through a leaky ReLU (4.5 standard deviations in 8 bits).

    Args:
        target: any type; integers of 16 bits and more become zero, since they are places, not values.
        generator: of the target's device.
        raw: not normalised yet, as a convolution leaves them.
    """
    dtype = target.dtype
    if dtype == torch.bool:
        target.copy_(torch.rand(target.shape, device=target.device, generator=generator) > 0.5)
        return
    if not dtype.is_floating_point and dtype not in (torch.int8, torch.uint8):
        target.zero_()
        return
    value = torch.randn(target.shape, device=target.device, generator=generator)
    value = value * 0.7 + 0.1 if raw else torch.where(value > 0, value, value * 0.01)
    if dtype == torch.int8:
        value = (value * 28).round().clamp(-127, 127)
    elif dtype == torch.uint8:
        value = (value * 56).round().clamp(0, 255)
    elif dtype == torch.float8_e4m3fn:
        value = (value * 100).clamp(-448, 448)
    target.copy_(value)


def fill_sums(target: Tensor, of: Tensor | None) -> None:
    """Sums [replicas, N, C, 2] of a tensor (N, C, ...), spread over the replicas; of a standard one without it."""
    target.zero_()
    replicas, batch, channels = target.shape[:3]
    if of is None:
        target[..., 1] = 1.0 / replicas
        return
    each = of.reshape(of.shape[0], of.shape[1], -1).double()
    found = torch.stack((each.sum(2), each.square().sum(2)), -1)[:batch, :channels]
    target[:, : found.shape[0], : found.shape[1]] = found / replicas


def _bits(value: Tensor) -> Tensor:
    plain = value.contiguous().reshape(-1)
    return plain.view(getattr(torch, _INTEGERS[value.dtype.itemsize]))


def _check(got: Tensor, wanted: Tensor, allowed: Tolerance, role: str) -> float:
    if not got.dtype.is_floating_point:
        return _check_integers(got, wanted, allowed, role)
    a, b = got.float(), wanted.float()
    if got.dtype == torch.float64:
        a, b = got, wanted
    missing = int((~torch.isfinite(a) & torch.isfinite(b)).sum())
    if missing:
        raise WrongResultError(f"{missing} values of {role} are missing or not finite")
    known = torch.isfinite(b)
    if not bool(known.all()):  # such as the logarithm of a random value: not finite in both
        a, b = torch.where(known, a, 0), torch.where(known, b, 0)
    size = float(torch.linalg.vector_norm(b))
    error = float(torch.linalg.vector_norm(a - b)) / max(size, 1e-30) if size else float(a.abs().max())
    if not error <= allowed.relative:
        raise WrongResultError(f"{role} is off by {error:.2e}, {allowed.relative:.0e} is allowed")
    rms = size / max(b.numel(), 1) ** 0.5
    beyond = (a - b).abs() > 8 * allowed.relative * (b.abs() + rms)
    if bool(beyond.any()):
        raise WrongResultError(f"{int(beyond.sum())} values of {role} are off by more than rounding explains")
    return error


def _check_integers(got: Tensor, wanted: Tensor, allowed: Tolerance, role: str) -> float:
    if got.dtype not in (torch.int8, torch.uint8):
        if not torch.equal(got, wanted):
            raise WrongResultError(f"{role} differs")
        return 0.0
    off = (got.int() - wanted.int()).abs()
    if int(off.max()) > allowed.steps:
        raise WrongResultError(f"a value of {role} is off by {int(off.max())} steps")
    size = float(torch.linalg.vector_norm(wanted.float()))
    error = float(torch.linalg.vector_norm(off.float())) / max(size, 1.0)
    if error > allowed.relative:
        raise WrongResultError(f"{role} is off by {error:.2e}, {allowed.relative:.0e} is allowed")
    return error


def _check_sums(got: Tensor, wanted: Tensor, allowed: Tolerance, voxels: int) -> float:
    """Sums over the replicas, each against what rounding of the values that were added can make of it."""
    a, b = got.sum(0), wanted.sum(0)
    if not bool(torch.isfinite(a).all()):
        raise WrongResultError("sums are missing or not finite")
    squares = b[..., 1].clamp_min(1e-30)
    # values may cancel in their sum: its error is of the size of the sum of magnitudes, at most sqrt(n · Σx²)
    error = max(
        float(((a[..., 1] - b[..., 1]).abs() / squares).max()),
        float(((a[..., 0] - b[..., 0]).abs() / (squares * voxels).sqrt()).max()),
    )
    if not error <= allowed.relative:
        raise WrongResultError(f"the sums are off by {error:.2e}, {allowed.relative:.0e} is allowed")
    return error
