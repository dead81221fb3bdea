"""Compiles the kernels of a lowered network for an architecture without a device, by launching them at no driver.

    python -m tests.engines.cuda.ahead ARCH

A launcher runs on tensors of the CPU as it would on a GPU's; in place of the launch its kernel is compiled, with the
types, strides' divisibility and constants that it was called with. So every candidate of the tuner can be tried on
a machine that has no GPU, and for GPUs that nobody here has.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction
from triton.runtime.driver import driver

from wetread.engines.cuda.cache import problem_key, problem_of
from wetread.engines.cuda.operations import Target, operation
from wetread.engines.cuda.program import Program
from wetread.engines.cuda.steptable import kernel_text
from wetread.engines.cuda.trial import Trial
from wetread.errors import EngineUnavailableError
from wetread.kernels import arguments, attention, launch, matmul, pointwise, pool, resize, rows  # noqa: F401  (those that ask for overlap)

SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
"""Largest shared memory of a block (CUDA C++ Programming Guide, table of technical specifications)."""


class NoDevice:
    """Stands for Triton's driver: says which architecture to compile for."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass
class Report:
    """What was compiled: kernels by name, most shared memory of each; failures with their step and kernel."""

    compiled: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@contextlib.contextmanager
def compiling(arch: int, report: Report) -> Iterator[None]:
    """Launches compile for `arch` and do nothing else."""
    original, before = JITFunction.run, driver.active if "active" in vars(driver) else None

    def run(self, *args, grid, warmup, **kwargs):
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        name = self.fn.__name__
        shared = int(kernel.metadata.shared)
        report.compiled[name] = max(report.compiled.get(name, 0), shared)
        if shared > SHARED_BYTES[arch]:
            raise RuntimeError(f"out of resource: {shared} bytes of shared memory")

    overlap = {"PDL": True, "launch_pdl": True} if arch >= 90 else {"PDL": False}
    homes = [
        m for name, m in sys.modules.items() if name.startswith("wetread.kernels") and "overlapped" in vars(m)
    ]
    asked = arguments.overlapped
    JITFunction.run = run
    driver.set_active(NoDevice(arch))
    for home in homes:
        home.overlapped = lambda: overlap
    try:
        yield
    finally:
        JITFunction.run = original
        for home in homes:
            home.overlapped = asked
        if before is not None:
            driver.set_active(before)


def compile_program(program: Program, arch: int, most: int, ops: tuple[str, ...] = ()) -> Report:
    """Compiles the first candidates of each problem; those written for one architecture alone are skipped."""
    report, seen = Report(), set()
    target = Target((arch // 10, arch % 10), SHARED_BYTES[arch], 132)
    with compiling(arch, report):
        for step in program.steps:
            key = problem_key(problem_of(step, program))
            if key in seen or (ops and step.op not in ops):
                continue
            seen.add(key)
            found = operation(step.op).kernels(step, program, target)[:most]
            trial = Trial(step, program, "cpu", filled=False) if found else None
            for kernel in found:
                text = f"{step.name} {step.op}: {kernel_text(kernel)}"
                try:
                    trial.launcher(kernel)()
                except EngineUnavailableError:
                    report.skipped.append(text)  # sm_90a's kernels want CUDA's own compiler
                except Exception as error:  # whatever a compiler raises
                    report.failed.append(
                        f"{text}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                    )
    return report


def main(path: str, window: str, precision: str, arch: int, most: int) -> None:
    from pathlib import Path

    from wetread.engines.cuda.lower import lower
    from wetread.graph import Graph

    torch.set_num_threads(1)
    size = tuple(int(part) for part in window.split(","))
    program = lower(Graph.load(Path(path)), size, 1, precision)
    started = time.monotonic()
    report = compile_program(program, arch, most)
    for text in report.failed:
        print("FAILED", text)
    print(f"{len(program.steps)} steps; compiled {report.compiled}; {len(report.failed)} failed, "
          f"{len(report.skipped)} skipped; {time.monotonic() - started:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
