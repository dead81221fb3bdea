"""Compiles candidates in parallel: processes that launch each once, and so fill the kernels' caches on disk.

What crashes, hangs or faults there takes its process with it and nothing else; the candidate is never run again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from wetread.engines.cuda.operations import Kernel
from wetread.engines.cuda.plan import Plan, library_settings
from wetread.engines.cuda.program import Program
from wetread.engines.cuda.steptable import kernel_text
from wetread.engines.cuda.trial import Trial

START_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Job:
    """One thing to do in a worker.

    Attributes:
        key: names it.
        payload: what the task is given; must pickle.
    """

    key: str
    payload: Any


@dataclass(frozen=True)
class Crew:
    """What the workers run.

    Attributes:
        start: called once in each worker with `arguments`; its result is the worker's state.
        task: called with the state and a job's payload; raises where the job fails.
        arguments: of `start`.
        lost: called with the state after a failure: whether the worker is unusable and must be replaced.
    """

    start: Callable[..., Any]
    task: Callable[[Any, Any], None]
    arguments: tuple[Any, ...] = ()
    lost: Callable[[Any], bool] | None = None


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None
    since: float = 0.0
    limit: float = START_TIMEOUT_S


def run_all(
    jobs: Sequence[Job], crew: Crew, processes: int, timeout_s: float = 120.0,
) -> dict[str, str]:  # fmt: skip
    """Runs the jobs in spawned processes.

    Args:
        jobs: taken in order by whichever worker is free.
        crew: what the workers run; functions of modules, since they are pickled by name.
        processes: at most so many.
        timeout_s: of one job; a worker that takes longer is killed.

    Returns:
        What went wrong, by the key of the job; nothing for jobs that succeeded.
    """
    context = multiprocessing.get_context("spawn")
    todo = list(reversed(jobs))
    failed: dict[str, str] = {}
    workers: list[_Worker] = []

    def hire() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, crew), daemon=True)
        with _no_main():
            process.start()
        theirs.close()
        workers.append(_Worker(process, ours, None, time.monotonic()))

    try:
        for _ in range(min(processes, len(todo))):
            hire()
        while workers:
            _hear(workers, todo, failed, timeout_s)
            while todo and len(workers) < min(processes, len(todo)) and not _hopeless(failed):
                hire()
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
    for job in todo:
        failed[job.key] = _UNDONE
    return failed


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Hides the program from the processes that are started, which would run its top level once more.

    So a script that makes an engine needs no ``if __name__ == "__main__"``. What workers run lives in modules.
    """
    with _MAIN:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


_MAIN = threading.Lock()
_START = "\0start"
_UNDONE = "no worker could be started"


def _hopeless(failed: dict[str, str]) -> bool:
    """Workers that cannot even start are not hired again."""
    return _START in failed


def _hear(workers: list[_Worker], todo: list[Job], failed: dict[str, str], timeout_s: float) -> None:
    """Waits for news of any worker, hands out jobs, and lets go who is done, lost or too slow."""
    now = time.monotonic()
    soonest = min(w.since + w.limit - now for w in workers)
    ready = set(wait([w.pipe for w in workers], timeout=max(0.0, soonest)))
    for worker in list(workers):
        if worker.pipe in ready:
            try:
                text, lost = worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join(5)
                code = worker.process.exitcode
                text, lost = f"its process died (exit code {code})", True
        elif time.monotonic() - worker.since > worker.limit:
            text, lost = f"took longer than {worker.limit:.0f} s", True
        else:
            continue
        if text:
            failed[worker.job.key if worker.job else _START] = text
        worker.job = None
        if lost or not todo:
            _dismiss(worker)
            workers.remove(worker)
            continue
        worker.job, worker.since, worker.limit = todo.pop(), time.monotonic(), timeout_s
        worker.pipe.send(worker.job.payload)


def _dismiss(worker: _Worker) -> None:
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join()
    worker.pipe.close()


def _work(pipe: Connection, crew: Crew) -> None:
    """In the worker: tells after the start and after each job what went wrong ('' for nothing), and if it is lost."""
    try:
        state = crew.start(*crew.arguments)
    except Exception as error:  # noqa: BLE001  (whatever it is, it belongs to the parent)
        pipe.send((_described(error), True))
        return
    pipe.send(("", False))
    while True:
        payload = pipe.recv()
        try:
            crew.task(state, payload)
            pipe.send(("", False))
        except Exception as error:  # noqa: BLE001  (a compiler may raise anything)
            lost = crew.lost is not None and crew.lost(state)
            pipe.send((_described(error), lost))
            if lost:
                return


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def compile_all(
    program: Program, jobs: Mapping[str, tuple[str, Kernel | None]], device: torch.device,
    processes: int | None, log: Callable[[str], None],
) -> dict[str, str]:  # fmt: skip
    """Launches kernels once each in worker processes, which fill the kernels' caches on disk.

    Args:
        program: its weights travel by a plan on disk.
        jobs: step's name and kernel, by any key.
        device: of the launches.
        processes: None takes as many as processors and the device's memory hold, 16 at the most; 0 none.
        log: told what drops out.

    Returns:
        What went wrong, by key; not what only a worker's share of memory was too small for, and nothing of kernels
        for which no worker could be started: those are compiled when they are timed, one after the other.
    """
    processes = _processes(program, processes, device)
    if not processes or not jobs:
        return {}
    with tempfile.TemporaryDirectory(prefix="wetread-tuning-") as folder:
        Plan.make(replace(program, steps=[s.with_kernel(None) for s in program.steps])).save(folder, "tuned")
        crew = Crew(_start, _launch, (folder, str(device)), _lost)
        failed = run_all([Job(key, payload) for key, payload in jobs.items()], crew, processes)
    if reason := failed.pop(_START, ""):
        log(f"a worker could not be started: {reason}")
        failed = {key: text for key, text in failed.items() if text != _UNDONE}
    for key, text in failed.items():
        log(f"  {jobs[key][0]}: drops out: {kernel_text(jobs[key][1])}: {text}")
    return {key: text for key, text in failed.items() if not text.startswith("OutOfMemoryError")}


_WORKER_BYTES = 700 << 20
"""Of device memory that a process takes before it has allocated anything: CUDA's context and modules."""


def _processes(program: Program, asked: int | None, device: torch.device) -> int:
    """As many as were asked for, the processor has, and the device's memory holds."""
    if multiprocessing.current_process().daemon:
        return 0  # such a process may have no children
    if asked is not None or device.type == "cpu":
        return asked or 0
    largest = max(
        (
            sum(program.spec(name).bytes for name in (*s.inputs.values(), *s.outputs.values()))
            for s in program.steps
        ),
        default=0,
    )
    free = torch.cuda.mem_get_info(device)[0]
    return max(0, min(os.cpu_count() or 1, 16, int(free // (_WORKER_BYTES + 3 * largest))))


@dataclass
class _Shop:
    """A worker's plan and the trial it launched on last."""

    program: Program
    device: torch.device
    trial: Trial | None = None


def _start(folder: str, device: str) -> _Shop:
    torch.set_num_threads(1)
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    return _Shop(Plan.load(Path(folder), "tuned").program, where)


def _launch(shop: _Shop, payload: tuple[str, Kernel | None]) -> None:
    name, kernel = payload
    if shop.trial is None or shop.trial.step.name != name:
        shop.trial = None  # its memory goes before the next is made
        step = next(step for step in shop.program.steps if step.name == name)
        shop.trial = Trial(step, shop.program, shop.device, filled=False)
    with library_settings(shop.program.precision):
        shop.trial.launcher(kernel)()
    if shop.device.type == "cuda":
        torch.cuda.synchronize(shop.device)


def _lost(shop: _Shop) -> bool:
    """Whether a fault has made the worker's device context useless."""
    if shop.device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(shop.device)
    except RuntimeError:
        return True
    return False
