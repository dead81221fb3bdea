"""Chooses the kernel of each step: candidates are compiled, compared with the reference, timed; the fastest stays.

    program = tune(lowered, target(), Options(cache=TimingCache(path, stamp()), log=print))

Equal problems are timed once. A candidate must give the reference's values before it is timed and the same bits
afterwards, leave everything else alone, and beat the library. What was measured is read from the cache the next
time, so a tuned plan reproduces.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import torch

from wetread.engines.cuda.cache import Problem, Row, TimingCache, problem_key, problem_of
from wetread.engines.cuda.clock import Clock, GraphClock
from wetread.engines.cuda.compiling import compile_all
from wetread.engines.cuda.measuring import measure
from wetread.engines.cuda.operations import Kernel, Target, operation
from wetread.engines.cuda.plan import library_settings
from wetread.engines.cuda.program import Program, Step
from wetread.engines.cuda.steptable import StepTime, kernel_text, step_table, table_text

__all__ = [
    "GraphClock",
    "Options",
    "StepTime",
    "kernel_text",
    "step_table",
    "table_text",
    "target",
    "tune",
    "warm",
]


def _silent(_text: str) -> None:
    return None


@dataclass(frozen=True)
class Options:
    """How a program is tuned.

    Attributes:
        cache: of measured times; None times everything and keeps nothing.
        hints: a cache of another driver or version: its best few are timed instead of all candidates, and the first
            of each family that it does not name.
        quick: without `hints`, what `cache` knows of the same kernels for another batch or window serves as hints.
        most: candidates of one problem at the most, of those that the operation names first.
        hinted: candidates of one problem at the most where hints say which.
        processes: that compile; None takes the processors, 16 at the most; 0 compiles as it goes.
        clock: that times.
        log: told one line for each problem.
        compiled: what `compile_many` returned; such candidates are not compiled again.
    """

    cache: TimingCache | None = None
    hints: TimingCache | None = None
    quick: bool = True
    most: int = 40
    hinted: int = 6
    processes: int | None = None
    clock: Clock = field(default_factory=GraphClock)
    log: Callable[[str], None] = _silent
    compiled: Mapping[str, str] | None = None


def target(device: torch.device | str | int | None = None) -> Target:
    """What kernels are chosen for.

    Args:
        device: None takes torch's current GPU, or the CPU where there is none.
    """
    on_cpu = device is not None and torch.device(device).type == "cpu"
    if on_cpu or not torch.cuda.is_available():
        return Target(interpreted=os.environ.get("TRITON_INTERPRET") == "1")
    found = torch.cuda.get_device_properties(device)
    shared = int(getattr(found, "shared_memory_per_block_optin", 0) or found.shared_memory_per_block)
    return Target((found.major, found.minor), shared, found.multi_processor_count)


def on(device: torch.device | str) -> torch.device:
    """The device with its number: torch's current GPU where none is said."""
    found = torch.device(device)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def tune(
    program: Program, device_target: Target, options: Options | None = None,
    device: torch.device | str | None = None,
) -> Program:  # fmt: skip
    """The program with a kernel chosen for every step.

    Where own kernels do not run (sm_75, the CPU) every step is the library's and nothing is timed.

    Args:
        program: lowered, weights on the CPU.
        device_target: from `target`.
        options: cache, hints, clock, log.
        device: where to time; None takes torch's current GPU, or the CPU under Triton's interpreter.

    Raises:
        EngineError: the device failed while a candidate ran on it; what was measured before is in the cache.
    """
    options = options or Options()
    if not device_target.triton or find_spec("triton") is None:
        return _with_kernels(program, {})
    where = on(device or ("cpu" if device_target.interpreted else "cuda"))
    found: dict[str, list[Row]] = {}
    keys: dict[str, str] = {}
    todo: list[_Problem] = []
    for step in program.steps:
        problem = problem_of(step, program)
        keys[step.name] = key = problem_key(problem)
        if key in found or any(each.key == key for each in todo):
            continue
        known = options.cache.get(problem) if options.cache else None
        if known is not None:
            found[key] = known
            continue
        candidates = _candidates(step, program, device_target, problem, options)
        if len(candidates) > 1:
            todo.append(_Problem(key, problem, step, candidates))
        else:
            found[key] = [Row(candidates[0], 0.0)]
    options.log(f"{len(program.steps)} steps, {len(todo)} problems to time, "
                f"{sum(len(each.candidates) for each in todo)} candidates")  # fmt: skip
    found |= _measured(program, todo, options, where)
    kernels = {name: found[key][0].kernel if found[key] else None for name, key in keys.items()}
    tuned = _with_kernels(program, kernels)
    if options.compiled is None:
        warm(tuned, options, where)
    return tuned


@dataclass(frozen=True)
class _Problem:
    """A step that stands for all of its kind, and the kernels to time for it (None is the library)."""

    key: str
    problem: Problem
    step: Step
    candidates: Sequence[Kernel | None]


def _with_kernels(program: Program, kernels: Mapping[str, Kernel | None]) -> Program:
    steps = [step.with_kernel(kernels.get(step.name)) for step in program.steps]
    return replace(program, steps=steps)


def _candidates(
    step: Step, program: Program, device_target: Target, problem: Problem, options: Options
) -> list[Kernel | None]:
    """Own kernels, likely winners first, and the library; of these the hinted ones where hints are wanted."""
    own = [dict(kernel) for kernel in operation(step.op).kernels(step, program, device_target)]
    own = own[: options.most]
    hinted: list[Kernel | None] = []
    if options.hints is not None:
        hinted = options.hints.hints(problem)
    elif options.quick and options.cache is not None:
        hinted = options.cache.hints(problem, same_kernels=True)
    # a hint from an older version may name a kernel that is no longer offered
    hinted = [kernel for kernel in hinted if kernel is None or dict(kernel) in own][: options.hinted]
    if not any(kernel is not None for kernel in hinted):
        return [*own, None]
    chosen = [kernel for kernel in hinted if kernel is not None]
    seen = {kernel.get("family") for kernel in chosen}
    for kernel in own if options.hints is not None else ():
        if kernel.get("family") not in seen:
            seen.add(kernel.get("family"))
            chosen.append(kernel)
    return [*chosen, None] if None in hinted else list(chosen)


def _measured(
    program: Program, todo: Sequence[_Problem], options: Options, device: torch.device
) -> dict[str, list[Row]]:
    started = time.monotonic()
    jobs = _jobs(todo)
    failed = (
        dict(options.compiled)
        if options.compiled is not None
        else compile_all(program, jobs, device, options.processes, options.log)
    )
    if jobs and options.compiled is None and time.monotonic() - started > 1.0:
        options.log(f"compiled in {time.monotonic() - started:.0f} s, {len(failed)} candidates drop out")
    found = {}
    with library_settings(program.precision):
        for each in todo:
            runnable = [kernel for kernel in each.candidates if _name(each.key, kernel) not in failed]
            rows = measure(program, each.step, runnable, device, clock=options.clock, log=options.log)
            if options.cache is not None:
                options.cache.put(each.problem, rows)
            found[each.key] = rows
    return found


def _name(key: str, kernel: Kernel | None) -> str:
    return f"{key} {kernel_text(kernel)}"


def _jobs(todo: Sequence[_Problem]) -> dict[str, tuple[str, Kernel | None]]:
    return {_name(each.key, kernel): (each.step.name, kernel) for each in todo for kernel in each.candidates
            if kernel is not None}  # fmt: skip


def compile_many(
    programs: Sequence[Program], device_target: Target, options: Options, device: torch.device | str
) -> dict[str, str]:
    """Compiles the candidates of several programs side by side, before they are tuned one after the other.

    Args:
        programs: lowered.
        device_target: from `target`.
        options: `processes` is the number for all of them together.
        device: of the launches.

    Returns:
        What went wrong, for `Options.compiled`.
    """
    work: list[tuple[Program, dict[str, tuple[str, Kernel | None]]]] = []
    seen: set[str] = set()
    for program in programs:
        todo = []
        for step in program.steps:
            problem = problem_of(step, program)
            key = problem_key(problem)
            known = options.cache.get(problem) if options.cache else None
            if key not in seen:
                rows = [row.kernel for row in known[:1]] if known else None
                found = rows or _candidates(step, program, device_target, problem, options)
                todo.append(_Problem(key, problem, step, found))
            seen.add(key)
        work.append((program, _jobs(todo)))
    total = max(1, sum(len(jobs) for _, jobs in work))
    processes = options.processes or min(os.cpu_count() or 1, 16)

    def one(item: tuple[Program, dict[str, tuple[str, Kernel | None]]]) -> dict[str, str]:
        share = max(1, round(processes * len(item[1]) / total))
        return compile_all(*item, on(device), share, options.log)

    failed: dict[str, str] = {}
    with ThreadPoolExecutor(max(1, len(work))) as pool:
        for each in pool.map(one, work):
            failed |= each
    return failed


def warm(program: Program, options: Options | None = None, device: torch.device | str = "cuda") -> None:
    """Compiles the kernels of a tuned program in parallel, where the caches on disk lack them."""
    jobs = {step.name: (step.name, step.kernel) for step in program.steps if step.kernel is not None}
    options = options or Options()
    compile_all(program, jobs, on(device), options.processes, options.log)
