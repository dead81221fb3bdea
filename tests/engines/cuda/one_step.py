"""Programs of one step, with random tensors, run by reference, by the library, and by each own kernel."""

from __future__ import annotations

import math

import torch

from tests.kernels.reference import DEVICE
from wetread.engines.cuda.execute import allocate
from wetread.engines.cuda.operations import Arrays, Packs, Target, operation
from wetread.engines.cuda.program import Program, Step, TensorSpec, channels_last, sums_spec

INTERPRETER = Target(interpreted=True, shared_bytes=225_000, processors=4)


def random_like(spec, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed + sum(spec.shape))
    v = torch.randn(spec.shape, generator=g) * scale
    if spec.dtype == "int8":
        v = (v * 40).round().clamp(-127, 127)
    if spec.dtype == "uint8":
        v = (v.abs() * 60).round().clamp(0, 255)
    return v.to(spec.torch_dtype)


def sums_of(x, replicas=8):
    """The sums that a producer leaves, spread over replicas; x (N, C, *space)."""
    v = x.double()
    space = tuple(range(2, v.ndim))
    s = torch.stack([v.sum(space), v.square().sum(space)], -1)
    share = torch.rand(replicas, *s.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return (s * (share / share.sum(0)).to(s.device)).contiguous()


class OneStep:
    """One operation on tensors given by role."""

    def __init__(self, op, inputs, weights, outputs, attributes=None, specs=None):
        """inputs: tensors (CPU) by role; weights: tensors by role; outputs: (shape, dtype) or "sums" by role."""
        self.program = Program((1, 1, 1), 1, "float16")
        self.given = inputs
        roles = {}
        for role, value in inputs.items():
            if role.endswith("sums"):
                spec = sums_spec(value.shape[1], value.shape[2])
            else:
                dtype = str(value.dtype).removeprefix("torch.")
                spec = (specs or {}).get(role) or TensorSpec(
                    tuple(value.shape), dtype, channels_last(value.shape)
                )
            self.program.tensors[role] = spec
            roles[role] = role
        for role, value in weights.items():
            self.program.weights[role] = value
            roles[role] = role
        made = {}
        for role, what in outputs.items():
            if role == "sums":
                self.program.tensors["sums out"] = sums_spec(*what)
                made[role] = "sums out"
            else:
                shape, dtype = what
                self.program.tensors[f"{role} out"] = (specs or {}).get(role) or TensorSpec(
                    tuple(shape), dtype, channels_last(shape)
                )
                made[role] = f"{role} out"
        self.step = Step("step", op, roles, made, attributes or {})
        self.program.inputs = tuple(inputs)
        self.packs = Packs()

    def arrays(self, kernel=None):
        tensors = allocate(self.program, DEVICE)
        for role, value in self.given.items():
            tensors[role].copy_(value)
        for role, name in self.step.outputs.items():
            if role != "sums" and not tensors[name].is_floating_point():
                tensors[name].fill_(77)
        size = operation(self.step.op).scratch_bytes(self.step.with_kernel(kernel), self.program, kernel)
        scratch = torch.full((max(size, 1),), 0xFF, dtype=torch.uint8, device=DEVICE)
        return Arrays(
            {r: tensors[n] for r, n in self.step.inputs.items()},
            {r: tensors[n] for r, n in self.step.outputs.items()},
            scratch, self.packs,
        )  # fmt: skip

    def reference(self):
        at = self.arrays()
        operation(self.step.op).reference(self.step, at)
        return at.outputs

    def library(self):
        at = self.arrays()
        operation(self.step.op).library(self.step, at)
        return at.outputs

    def kernels(self, target=INTERPRETER):
        return operation(self.step.op).kernels(self.step, self.program, target)

    def kernel(self, kernel):
        at = self.arrays(kernel)
        step = self.step.with_kernel(kernel)
        launch = operation(step.op).prepare(step, kernel, at)
        launch()
        return at.outputs


def error(y, r):
    """Relative L2 error; NaN where any value is NaN."""
    return ((y.double() - r.double()).norm() / r.double().norm()).item()


def check_sums(sums, like, rtol=2e-3):
    """Sums [R, N, C, 2] of float16 values against others; means and variances."""
    for a, b in zip(_moments(sums), _moments(like), strict=True):
        assert torch.allclose(a, b, rtol=rtol, atol=1e-3 * math.sqrt(float(b.abs().max()) + 1e-6))


def _moments(sums):
    total = sums.sum(0)
    return total[..., 0], total[..., 1]
