"""Compares and times the candidates of one step: right before it is timed, the same bits afterwards."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from wetread.engines.cuda.cache import Row
from wetread.engines.cuda.clock import Clock
from wetread.engines.cuda.operations import Kernel
from wetread.engines.cuda.program import Program, Step
from wetread.engines.cuda.steptable import floors_us, kernel_text, peaks_of
from wetread.engines.cuda.trial import EIGHT_BITS, Trial
from wetread.errors import EngineError, WetreadError

LIBRARY_MARGIN = 1.03
"""The library must be faster by this factor to win: its kernels allocate, and change with its version."""
FINAL_MARGIN = 1.08
NEAR_FLOOR = 1.6
"""The library is not asked where an own kernel is so near the floor (cuDNN's convolutions in 3D stay twice above it,
and take seconds to choose), nor for 8-bit weights, which it would multiply in float32."""
FINALISTS = 4
"""Candidates so near to the fastest are timed again in turn: one measurement is no better than a few per cent."""


def measure(
    program: Program, step: Step, candidates: Sequence[Kernel | None], device: torch.device, *,
    clock: Clock, log: Callable[[str], None],
) -> list[Row]:  # fmt: skip
    """Compares and times the candidates of one step.

    Args:
        program: of the step.
        step: stands for all of its kind.
        candidates: kernels; None is the library.
        device: where.
        clock: that times.
        log: told what won and what dropped out.

    Returns:
        Those that gave the right values, fastest first; empty where none did, which the log says.

    Raises:
        EngineError: the device failed.
    """
    try:
        trial = Trial(step, program, device)
        trial.learn()
    except Exception as error:  # noqa: BLE001  (out of memory, an operator without a kernel for this type)
        _still_alive(device, step, None, error)
        log(f"  {step.name}: its reference does not run here, so the library runs it: {error}")
        return []
    near_us = NEAR_FLOOR * max(floors_us(step, program, peaks_of(device)))
    rows: list[Row] = []
    runs: dict[int, Callable[[], None]] = {}
    refused: list[str] = []
    for kernel in candidates:
        best = min((row.us for row in rows), default=float("inf"))
        if kernel is None and (best < near_us or (rows and _eight_bit(step, program))):
            continue
        try:
            run = trial.launcher(kernel)
            row = _timed(trial, kernel, run, clock, best)
        except Exception as error:  # noqa: BLE001  (compilers and drivers raise anything; the candidate drops out)
            _still_alive(device, step, kernel, error)
            what = error.what if isinstance(error, WetreadError) else f"{type(error).__name__}: {error}"
            refused.append(f"{kernel_text(kernel)}: {' '.join(what.split())[:120]}")
            continue
        runs[id(row)] = run
        rows.append(row)
    rows = _final(rows, runs, trial, clock)
    del trial, runs
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what graphs of library kernels kept serves nothing else
    rows.sort(key=lambda row: row.us * (LIBRARY_MARGIN if row.kernel is None else 1.0))
    for text in refused:
        log(f"  {step.name}: drops out: {text}")
    if rows:
        second = f", then {rows[1].us:.1f} {kernel_text(rows[1].kernel)}" if len(rows) > 1 else ""
        log(f"  {step.name}: {rows[0].us:.1f} µs {kernel_text(rows[0].kernel)}{second}; "
                    f"{len(rows)} of {len(rows) + len(refused)} agree")  # fmt: skip
    else:
        log(f"  {step.name}: no candidate agrees with the reference; the library runs it")
    return rows


def _timed(trial: Trial, kernel: Kernel | None, run: Callable[[], None], clock: Clock, best_us: float) -> Row:
    """One candidate: right before it is timed, the same bits afterwards, and again on poisoned outputs."""
    trial.reset()
    run()
    error = trial.compare()
    trial.reset()
    run()
    first = trial.outputs()
    us = clock.time_us(run, best_us)
    moved = WetreadError("its values move from run to run")
    if kernel is not None and not trial.same(first):
        raise moved
    trial.reset()
    run()
    if kernel is not None and not trial.same(first):
        raise moved
    trial.compare()
    return Row(kernel, us, error)


def _final(
    rows: Sequence[Row], runs: Mapping[int, Callable[[], None]], trial: Trial, clock: Clock
) -> list[Row]:
    """Times those near the fastest again, in turn, and takes each one's median."""
    ranked = sorted(rows, key=lambda row: row.us)
    near = [row for row in ranked[:FINALISTS] if row.us <= FINAL_MARGIN * ranked[0].us]
    if len(near) < 2:
        return list(ranked)
    trial.reset()
    times: list[list[float]] = [[row.us] for row in near]
    for _ in range(2):
        for i, row in enumerate(near):
            times[i].append(clock.time_us(runs[id(row)]))
    again = [replace(row, us=float(statistics.median(t))) for row, t in zip(near, times, strict=True)]
    return [*again, *ranked[len(near) :]]


def _still_alive(device: torch.device, step: Step, kernel: Kernel | None, error: Exception) -> None:
    """A fault of the device ends all work in this process."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as fault:
        raise EngineError(
            f"the device failed while {kernel_text(kernel)} ran: {error}",
            where=step.name,
            todo="tune again; what was measured before is kept",
        ) from fault


def _eight_bit(step: Step, program: Program) -> bool:
    weight = step.inputs.get("weight")
    return weight is not None and program.spec(weight).dtype in EIGHT_BITS
