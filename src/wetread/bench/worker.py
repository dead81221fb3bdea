"""One row of the bench in a process of its own: ``python -m wetread.bench.worker FOLDER``.

The folder holds ``task.json``, ``inputs.npy`` (windows, (n, channels, *window)) and ``slot.npy`` (one window,
which the parent fills anew). Messages are lines of JSON: requests come on standard input, answers go to what was
standard output; whatever libraries print goes to standard error.

| request | answer |
|---|---|
| (none) | ``size_mib``, ``device_memory_mib``, ``versions``, ``layers``, ``output_shape``, ``load_memory_mib`` |
| ``{"run": [0, 1, 2]}`` | ``seconds``: of each of these windows |
| ``{"answer": 3}``, or ``"slot"`` | ``done``; the output lies in ``output.npy``, (*output shape) |
| ``{"memory": true}`` | ``peak_memory_mib``: since the network was ready, where the system can tell |

An error is answered with ``error``: what `WetreadError.to_json` gives, or the exception's words; before the network
is ready it is the last answer.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from wetread.bench.task import Float32, Task
from wetread.errors import WetreadError


class Row:
    """The players of a task and its windows."""

    def __init__(self, folder: Path) -> None:
        from wetread.bench.peers.players import make_player

        self._folder = folder
        task = Task.from_json(json.loads((folder / "task.json").read_text()))
        self._players = [make_player(task, i) for i in range(len(task.networks) or 1)]
        self._inputs: Float32 = np.load(folder / "inputs.npy")
        self._slot = np.load(folder / "slot.npy", mmap_mode="r")
        output = self._run(self._inputs[:1])
        self._output = np.lib.format.open_memmap(
            folder / "output.npy", "w+", dtype=np.float32, shape=output.shape[1:]
        )
        versions: dict[str, str] = {}
        for player in self._players:
            versions |= player.versions
        self.ready = {
            "size_mib": sum(player.size_bytes for player in self._players) / 2**20,
            "device_memory_mib": sum(getattr(p, "device_bytes", 0) for p in self._players) / 2**20,
            "versions": versions,
            "layers": self._players[0].layers,
            "output_shape": list(output.shape[1:]),
        }

    def _run(self, image: Float32) -> Float32:
        total = self._players[0].run(image)
        if len(self._players) > 1:
            total = total.copy()
            for player in self._players[1:]:
                total += player.run(image)
            total *= np.float32(1 / len(self._players))
        return total

    def timed(self, numbers: list[int]) -> dict[str, Any]:
        """Seconds of each of these windows, from input array to output array."""
        seconds = []
        for number in numbers:
            image = self._inputs[number : number + 1]
            started = time.perf_counter()
            self._run(image)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def answer(self, which: int | str) -> dict[str, Any]:
        """Runs one window and leaves its output in the folder."""
        image = np.array(self._slot[None]) if which == "slot" else self._inputs[int(which) : int(which) + 1]
        self._output[...] = self._run(image)[0]
        self._output.flush()
        return {"done": True}


def peak_memory_mib() -> float:
    """Most memory that this process has held: VmHWM, else what the system counts for it.

    ``ru_maxrss`` alone would not do on Linux, where it starts at the size of the process that forked this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if sys.platform == "darwin" else 1024)


def told(error: BaseException) -> dict[str, str]:
    """An exception as an answer."""
    if isinstance(error, WetreadError):
        return {"code": error.code, "what": error.what, "where": error.where, "todo": error.todo}
    if isinstance(error, ModuleNotFoundError):
        return {"code": "MISSING", "what": f"{error.name} is not installed", "todo": f"install {error.name}"}
    return {"code": "FAILED", "what": f"{type(error).__name__}: {error}".splitlines()[0][:500]}


def serve(folder: Path, requests: Any, say: Callable[[dict[str, Any]], None]) -> None:
    """Makes the row ready and answers requests until there are no more."""
    try:
        row = Row(folder)
    except Exception as error:  # noqa: BLE001 - every failure is the row's own answer
        say({"error": told(error)})
        return
    loaded = peak_memory_mib()
    gc.collect()
    with suppress(
        OSError
    ):  # Linux: the peak is counted anew, so that what was needed to load is no part of it
        Path("/proc/self/clear_refs").write_text("5")
    say(row.ready | {"load_memory_mib": loaded})
    for line in requests:
        request = json.loads(line)
        try:
            if "run" in request:
                say(row.timed(request["run"]))
            elif "answer" in request:
                say(row.answer(request["answer"]))
            else:
                say({"peak_memory_mib": peak_memory_mib()})
        except Exception as error:  # noqa: BLE001 - as above
            say({"error": told(error)})


def main() -> None:
    """Entry point of the worker."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def say(message: dict[str, Any]) -> None:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

        serve(Path(sys.argv[1]), sys.stdin, say)


if __name__ == "__main__":
    main()
