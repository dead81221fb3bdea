"""Worker processes and the turns that they take."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.bench.task import Task
from wetread.engines.common import Closing
from wetread.errors import EngineError

_PAUSE_S = 0.05
"""Between turns: threads that spin after their last window come to rest."""


class RowFailedError(EngineError):
    """A row of the bench cannot run; its message is what the table says."""

    default_code = "ROW_FAILED"


class Worker(Closing):
    """One row in a process of its own; a context manager.

    Args:
        task: what it runs.
        folder: its own, empty.
        inputs: windows (n, channels, *window).
        timeout_s: longest wait for one answer.

    Raises:
        RowFailedError: it cannot run here; says why.

    Attributes:
        ready: what the worker said when its network was ready.
    """

    def __init__(self, task: Task, folder: Path, inputs: NDArray[np.float32], timeout_s: float = 900) -> None:
        self.task = task
        self._folder = folder
        self._timeout_s = timeout_s
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "task.json").write_text(json.dumps(task.to_json()), encoding="utf-8")
        np.save(folder / "inputs.npy", inputs)
        self._slot = np.lib.format.open_memmap(
            folder / "slot.npy", "w+", dtype=np.float32, shape=inputs.shape[1:]
        )
        self._log = (folder / "worker.log").open("w+b")
        threads = {
            name: str(task.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        self._process = subprocess.Popen(  # noqa: S603 - our own module in our own interpreter
            [sys.executable, "-m", "wetread.bench.worker", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | threads,
        )
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def run(self, windows: Sequence[int]) -> list[float]:
        """Seconds of each of these windows."""
        return [float(value) for value in self._ask({"run": list(windows)})["seconds"]]

    def output(self, window: int | NDArray[np.float32]) -> NDArray[np.float32]:
        """Output of one of the windows, or of an array (channels, *window); read it before the next call."""
        if isinstance(window, int):
            self._ask({"answer": window})
        else:
            self._slot[...] = window
            self._slot.flush()
            self._ask({"answer": "slot"})
        found: NDArray[np.float32] = np.load(self._folder / "output.npy", mmap_mode="r")
        return found

    def peak_memory_mib(self) -> float:
        """Most memory since the network was ready."""
        return float(self._ask({"memory": True})["peak_memory_mib"])

    def close(self) -> None:
        """Ends the process; a second call does nothing."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with contextlib.suppress(OSError):  # the process is gone already, which is what is wanted
            stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(5)  # before its stream is closed under it
        stdout.close()
        self._log.close()

    def _listen(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        for line in stream:
            self._answers.put(line)
        self._answers.put(b"")

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        stream = self._process.stdin
        assert stream is not None
        try:
            stream.write(json.dumps(request).encode() + b"\n")
            stream.flush()
        except OSError as error:
            raise self._died() from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            self._process.kill()
            raise RowFailedError(
                f"no answer within {self._timeout_s:g} s",
                where=self.task.key,
                todo="give it more with --timeout",
            ) from None
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            told = answer["error"]
            raise RowFailedError(
                str(told["what"]),
                where=str(told.get("where", "")),
                todo=str(told.get("todo", "")),
                code=str(told["code"]),
            )
        return answer

    def _died(self) -> RowFailedError:
        code = self._process.wait()
        self._log.flush()
        text = (self._folder / "worker.log").read_text(errors="replace").strip()
        last = text.splitlines()[-1][:300] if text else "it said nothing"
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return RowFailedError(f"the worker ended with {how}: {last}", where=self.task.key, code="WORKER_DIED")


@dataclass
class Timed:
    """What the turns gave: seconds of every timed window of each row, and why a row fell out."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, RowFailedError] = field(default_factory=dict)


def take_turns(workers: Sequence[Worker], windows: int, turns: int, per_turn: int, warm_up: int = 1) -> Timed:
    """Times all rows in one run: in each turn every row runs the same few windows, one row after the other.

    The order rotates from turn to turn, so that no row always follows the same one; turns of warm-up are not
    counted. A row that fails falls out, the others go on.

    Args:
        workers: the rows.
        windows: number of windows that the workers hold.
        turns: counted turns.
        per_turn: windows in a turn; they cycle through all windows.
        warm_up: turns before.
    """
    result = Timed({worker.task.key: [] for worker in workers})
    rows = list(workers)
    for turn in range(-warm_up, turns):
        chosen = [(max(turn, 0) * per_turn + i) % windows for i in range(per_turn)]
        first = turn % max(1, len(rows))
        for worker in [*rows[first:], *rows[:first]]:
            time.sleep(_PAUSE_S)
            try:
                seconds = worker.run(chosen)
            except RowFailedError as error:
                result.failed[worker.task.key] = error
                result.seconds.pop(worker.task.key)
                rows.remove(worker)
                continue
            if turn >= 0:
                result.seconds[worker.task.key] += seconds
    return result
