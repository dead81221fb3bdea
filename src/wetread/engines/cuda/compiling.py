"""Compiles candidates in parallel: processes that launch each once, and so fill the kernels' caches on disk.

What crashes, hangs or faults there takes its process with it and nothing else; the candidate is never run again.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

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
        failed[job.key] = "no worker could be started"
    return failed


_START = "\0start"


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
