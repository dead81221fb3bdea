"""Small programs for tests of plan, arena and tuner, of operations made here (`fake_operations`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from wetread.engines.cuda.operations import Arrays, Kernel, Operation, Target
from wetread.engines.cuda.operations.base import store, wide
from wetread.engines.cuda.program import Program, Step, TensorSpec, channels_last, row_major

SCRATCH = 1000


class Affine(Operation):
    """y = x · factor + bias: one weight, some scratch, kernels that are right, wrong, slow, or fail."""

    name = "affine"

    def __init__(self) -> None:
        self.prepared: list[tuple[str, str]] = []
        self.offered = ["right", "slow"]

    def reference(self, step: Step, at: Arrays) -> None:
        store(wide(at.inputs["x"]) * step.attributes["factor"] + wide(at.inputs["bias"]), at.outputs["y"])

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        return [{"family": name} for name in self.offered]

    def scratch_bytes(self, step: Step, program: Program, kernel: Kernel | None) -> int:
        return SCRATCH if kernel is not None else 0

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        family = str(kernel["family"])
        self.prepared.append((step.name, family))
        return FAMILIES[family](self, step, at)


def right(op: Operation, step: Step, at: Arrays) -> Callable[[], None]:
    return lambda: op.reference(step, at)


def wrong(op: Operation, step: Step, at: Arrays) -> Callable[[], None]:
    """One value of the result is not what it should be."""

    def run() -> None:
        op.reference(step, at)
        at.outputs["y"].select(0, 0).select(0, 0).select(0, 0).select(0, 0)[0] += 0.1

    return run


def lazy(op: Operation, step: Step, at: Arrays) -> Callable[[], None]:
    """Leaves the last window as it was."""

    def run() -> None:
        last = at.outputs["y"][-1].clone()
        op.reference(step, at)
        at.outputs["y"][-1] = last

    return run


def moving(op: Operation, step: Step, at: Arrays) -> Callable[[], None]:
    """Other bits at each run, all within the tolerance."""
    runs = iter(range(1000))

    def run() -> None:
        op.reference(step, at)
        at.outputs["y"] *= 1 + 1e-3 * (next(runs) % 2)

    return run


def outside(op: Operation, step: Step, at: Arrays) -> Callable[[], None]:
    """Writes beside its view."""

    def run() -> None:
        op.reference(step, at)
        y = at.outputs["y"]
        torch.as_strided(y, (1,), (1,), y.storage_offset() + y.shape[1])[0] = 1.0

    return run


def spoils(op: Operation, step: Step, at: Arrays) -> Callable[[], None]:
    """Writes to its input."""

    def run() -> None:
        op.reference(step, at)
        at.inputs["x"][..., 0] = 0

    return run


def crash(op: Operation, step: Step, at: Arrays) -> Callable[[], None]:
    def run() -> None:
        raise RuntimeError("out of resource: shared memory")

    return run


FAMILIES = {"right": right, "slow": right, "library like": right, "wrong": wrong, "lazy": lazy, "moving": moving,
            "outside": outside, "spoils": spoils, "crash": crash}  # fmt: skip


HOMES = ("arena", "plan", "execute", "trial", "tuner", "steptable")


def install(monkeypatch: pytest.MonkeyPatch) -> Affine:
    """Puts `affine` in place of the operations that ship, wherever they are looked up."""
    made = Affine()
    for home in HOMES:
        monkeypatch.setattr(f"wetread.engines.cuda.{home}.operation", lambda name: made)
    return made


def maps(shape: tuple[int, ...], dtype: str = "float16", **more: object) -> TensorSpec:
    """A map of voxels, channels last."""
    return TensorSpec(shape, dtype, channels_last(shape), **more)  # type: ignore[arg-type]


def chain(lengths: tuple[int, ...] = (4, 4, 4), window: tuple[int, int, int] = (3, 4, 5), batch: int = 2,
          wide_output: bool = False) -> Program:  # fmt: skip
    """Steps of `affine` one after the other; channels of each tensor from the second on are all of the first."""
    program = Program(window, batch, "float16", ("x",), (f"t{len(lengths) - 1}",))
    program.tensors["x"] = maps((batch, lengths[0], *window))
    generator = torch.Generator().manual_seed(3)
    before = "x"
    for i, _ in enumerate(lengths):
        name = f"t{i}"
        program.tensors[name] = maps((batch, lengths[0], *window))
        program.weights[f"w{i}"] = torch.randn(1, lengths[0], 1, 1, 1, generator=generator).half()
        program.steps.append(
            Step(f"step{i}", "affine", {"x": before, "bias": f"w{i}"}, {"y": name}, {"factor": 0.5 + i})
        )
        before = name
    return program


def in_place(window: tuple[int, int, int] = (2, 3, 4)) -> Program:
    """One step that writes the first half of a tensor's channels: a concat that is never made."""
    program = Program(window, 1, "float16", ("x", "other"), ("y",))
    program.tensors["x"] = maps((1, 4, *window))
    program.tensors["other"] = maps((1, 8, *window))
    whole = maps((1, 8, *window))
    program.tensors["y"] = whole
    program.tensors["first"] = TensorSpec((1, 4, *window), "float16", whole.strides, "y")
    program.weights["w0"] = torch.full((1, 4, 1, 1, 1), 0.25).half()
    program.steps.append(Step("half", "affine", {"x": "x", "bias": "w0"}, {"y": "first"}, {"factor": 2.0}))
    return program


def flat(size: int) -> TensorSpec:
    return TensorSpec((size,), "uint8", row_major((size,)))


def random_inputs(program: Program, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(rng.normal(size=program.tensors[name].shape)).to(
            program.tensors[name].torch_dtype
        )
        for name in program.inputs
    }
