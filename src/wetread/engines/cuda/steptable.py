"""Each step of a plan timed alone, beside the floor that the device sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from wetread.engines.cuda.clock import Clock, GraphClock
from wetread.engines.cuda.operations import Kernel, Packs, operation
from wetread.engines.cuda.plan import Plan, library_settings
from wetread.engines.cuda.program import Program, Step
from wetread.engines.cuda.trial import EIGHT_BITS, fill


@dataclass(frozen=True)
class Peaks:
    """What a device does at most.

    Attributes:
        tensor: operations a second of the tensor cores, by type of the operands.
        bandwidth: bytes a second to and from memory, as a copy reaches them.
    """

    tensor: Mapping[str, float]
    bandwidth: float


_EIGHT = dict.fromkeys(EIGHT_BITS, 1979e12)
PEAKS = {
    # NVIDIA's data sheet, dense; memory as measured (4.8e12 nominal)
    "H200": Peaks({"float16": 989e12, "bfloat16": 989e12, "float32": 494e12, **_EIGHT}, 4.3e12),
    "H100": Peaks({"float16": 989e12, "bfloat16": 989e12, "float32": 494e12, **_EIGHT}, 3.0e12),
}
"""By a word of the device's name."""


@dataclass(frozen=True)
class StepTime:
    """One step.

    Attributes:
        name, op: of the step.
        kernel: in words.
        us: microseconds of one launch, alone and repeated.
        compute_us, memory_us: floors of an arithmetic and of a memory at their peak; 0 where they are not known.
        tflops: useful 10¹² operations a second (of the direct algorithm).
    """

    name: str
    op: str
    kernel: str
    us: float
    compute_us: float
    memory_us: float
    tflops: float

    @property
    def floor_us(self) -> float:
        """The larger of the two floors."""
        return max(self.compute_us, self.memory_us)


def step_table(
    plan: Plan, clock: Clock | None = None, device: torch.device | str = "cuda", peaks: Peaks | None = None,
) -> list[StepTime]:  # fmt: skip
    """Times each step of a plan alone, on the tensors that the steps before it made from random inputs.

    Args:
        plan: with kernels chosen.
        clock: None times replays of CUDA graphs.
        device: where.
        peaks: None takes those of the device's name, if known.
    """
    clock = clock or GraphClock()
    where = torch.device(device)
    program, arena, packs = plan.program, plan.arena(where), Packs()
    tensors = plan.tensors(arena, {name: w.to(where) for name, w in program.weights.items()})
    generator = torch.Generator(where).manual_seed(0)
    peaks = peaks or peaks_of(where)
    rows = []
    with library_settings(program.precision):
        launches = plan.launchers(tensors, arena, packs)
        for i, step in enumerate(program.steps):
            # afresh: later steps have used the memory, and the timed ones have added to their sums again and again
            plan.zero(arena)
            for name in program.inputs:
                fill(tensors[name], generator)
            for launch in launches[:i]:
                launch()
            rows.append(_row(step, program, clock.time_us(launches[i]), peaks))
    return rows


def table_text(rows: Sequence[StepTime]) -> str:
    """The rows as lines, with their sum."""
    wide = max((len(row.name) for row in rows), default=4)
    lines = [
        f"{row.name:{wide}} {row.us:9.1f} µs  floor {row.floor_us:8.1f} (compute {row.compute_us:7.1f}, "
        f"memory {row.memory_us:7.1f}) {row.tflops:6.0f} TFLOP/s  {row.op}: {row.kernel}"
        for row in rows
    ]
    total, floor = sum(row.us for row in rows), sum(row.floor_us for row in rows)
    return "\n".join([*lines, f"{'sum':{wide}} {total:9.1f} µs  floor {floor:8.1f}"])


def _row(step: Step, program: Program, us: float, peaks: Peaks) -> StepTime:
    work = operation(step.op).work(step, program)
    compute, memory = floors_us(step, program, peaks)
    return StepTime(step.name, step.op, kernel_text(step.kernel), us, compute, memory, work.flop / us / 1e6)


def floors_us(step: Step, program: Program, peaks: Peaks) -> tuple[float, float]:
    """Microseconds that a step takes at the peak of arithmetic and of memory; 0 where a peak is not known."""
    work = operation(step.op).work(step, program)
    rate = peaks.tensor.get(_operands(step, program), 0.0)
    compute = work.flop / rate * 1e6 if rate else 0.0
    return compute, work.bytes / peaks.bandwidth * 1e6 if peaks.bandwidth else 0.0


def _operands(step: Step, program: Program) -> str:
    """Type of the operands of a step's products: the weights', where it has any."""
    for role in ("weight", "b", "q", "x", "a", "0"):
        if role in step.inputs:
            return program.spec(step.inputs[role]).dtype
    return ""


def peaks_of(device: torch.device) -> Peaks:
    """Of a device, by its name; empty where it is not known."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for word, found in PEAKS.items():
            if word in name:
                return found
    return Peaks({}, 0.0)


def kernel_text(kernel: Kernel | None) -> str:
    """A kernel in one line: its family, then its numbers."""
    if kernel is None:
        return "library"
    rest = " ".join(
        f"{key}={'×'.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for key, value in kernel.items()
        if key != "family"
    )
    return f"{kernel.get('family', '')} {rest}".strip()
