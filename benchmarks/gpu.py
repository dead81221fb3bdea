"""What the GPU benchmarks share: machine, PyTorch's stacks, times, memory, rows that are written at once."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from models3d import MODELS, Model, Shape3

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
PEAK = {"float16": 989e12, "bfloat16": 989e12, "int8": 1979e12, "float8": 1979e12, "float32": 67e12}
"""Operations a second that an H200 does at most, without sparsity (NVIDIA's data sheet)."""
BANDWIDTH = 4.3e12
"""Bytes a second, measured copy."""
STACKS = {
    "eager autocast": "float16", "eager float16 channels-last": "float16", "TorchScript float16": "float16",
    "torch.compile": "float16",
}  # fmt: skip


def machine() -> dict[str, Any]:
    """GPU, driver and versions."""
    import triton

    found = torch.cuda.get_device_properties(0) if CUDA else None
    driver = ""
    with contextlib.suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
    return {
        "gpu": found.name if found else "none", "processors": found.multi_processor_count if found else 0,
        "driver": driver, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version() if CUDA else 0,
        "torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }  # fmt: skip


def clear() -> None:
    """Waits, and gives what torch keeps for reuse back."""
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def allocated() -> int:
    """Bytes that live on the device."""
    return int(torch.cuda.memory_allocated()) if CUDA else 0


def peak_of(run: Callable[[], Any], base: int) -> int:
    """Largest device memory while it runs, beyond `base`."""
    if not CUDA:
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated()) - base


def once_ms(run: Callable[[], Any]) -> float:
    """Time of one run on the current stream."""
    if not CUDA:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def interleaved(
    variants: dict[str, Callable[[], Any]], rounds: int = 30, warm: int = 5
) -> dict[str, dict[str, float]]:
    """Median and quartiles in ms, one run of each in turn."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + warm):
        for name, run in variants.items():
            ms = once_ms(run)
            if number >= warm or rounds + warm < 3:
                times[name].append(ms)
    return {name: quartiles(values) for name, values in times.items()}


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return {"q1": values[0], "median": values[0], "q3": values[0]}
    q1, middle, q3 = statistics.quantiles(values, n=4)
    return {"q1": q1, "median": middle, "q3": q3}


@dataclass
class Stack:
    """One way of PyTorch to run a network.

    Attributes:
        name: one of `STACKS`.
        run: from input to output, both float32 or float16 tensors.
        peak_bytes: device memory at most, weights included; None for CUDA graphs, whose pools torch counts apart.
        note: such as the memory format that was faster.
        given: an input to time it with.
    """

    name: str
    run: Callable[[torch.Tensor], torch.Tensor]
    peak_bytes: int | None = None
    note: str = ""
    given: torch.Tensor | None = None
    keep: Any = field(default=None, repr=False)


def first(output: Any) -> torch.Tensor:
    """The tensor of a network that returns one, or several in a list."""
    return output if isinstance(output, torch.Tensor) else first(output[0])


def stack(name: str, model: Model, x: torch.Tensor, channels_last: bool = True) -> Stack:
    """Makes a stack ready and runs it: compiled, libraries' choices made.

    Args:
        name: one of `STACKS`.
        model: the network.
        x: float32 input of the shape that it is used with.
        channels_last: for `torch.compile`.
    """
    clear()
    base = allocated()
    module = keep = model.make().to(DEVICE)
    half = x.half()
    if name == "eager autocast":

        def run(x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), torch.autocast(DEVICE, torch.float16):
                return first(keep(x))

        given = x
    elif name == "eager float16 channels-last":
        keep = module.half().to(memory_format=torch.channels_last_3d)
        given = half.contiguous(memory_format=torch.channels_last_3d)

        def run(x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return first(keep(x.contiguous(memory_format=torch.channels_last_3d)))

    elif name == "TorchScript float16":
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            keep = torch.jit.freeze(torch.jit.trace(module.half(), half, check_trace=False))
        given = half

        def run(x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return first(keep(x))

    else:
        layout = torch.channels_last_3d if channels_last else torch.contiguous_format
        module = module.half().to(memory_format=layout)
        keep = torch.compile(module, mode="reduce-overhead", backend="inductor" if CUDA else "eager")
        given = half.contiguous(memory_format=layout)

        def run(x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return first(keep(x.contiguous(memory_format=layout)))

    del module
    for _ in range(4 if CUDA else 1):
        run(given)
    clear()
    peak = None if name == "torch.compile" else peak_of(lambda: run(given), base)
    return Stack(name, run, peak, "", given, keep)


def best_compile(model: Model, x: torch.Tensor) -> Stack:
    """`torch.compile` in the faster memory format."""
    found = []
    for channels_last in (True, False):
        with contextlib.suppress(NotImplementedError):
            made = stack("torch.compile", model, x, channels_last)
            half = x.half()
            ms = statistics.median(once_ms(lambda h=half, m=made: m.run(h)) for _ in range(5 if CUDA else 1))
            made.note = f"reduce-overhead, {'channels last' if channels_last else 'contiguous'}"
            found.append((ms, made))
    found.sort(key=lambda pair: pair[0])
    return found[0][1]


def _compile_one(job: tuple[str, Shape3, int, bool]) -> str:
    name, window, batch, channels_last = job
    torch.backends.cudnn.benchmark = True
    start = time.time()
    stack("torch.compile", MODELS[name], torch.randn(batch, 1, *window, device=DEVICE), channels_last)
    return f"{job} compiled in {time.time() - start:.0f} s"


def warm_compile(jobs: Sequence[tuple[str, Shape3, int, bool]], processes: int = 8) -> Any:
    """Starts processes that fill inductor's cache on disk; the returned function waits for them."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "3")
    if not CUDA or not jobs:
        return lambda: []
    pool = multiprocessing.get_context("spawn").Pool(min(processes, len(jobs)), maxtasksperchild=1)
    results = [pool.apply_async(_compile_one, (job,)) for job in jobs]
    pool.close()

    def wait(timeout_s: float = 300) -> list[str]:
        end, said = time.time() + timeout_s, []
        for job, result in zip(jobs, results, strict=True):
            try:
                said.append(result.get(max(1.0, end - time.time())))
            except Exception as error:  # the benchmark compiles it itself then
                said.append(f"{job} failed: {type(error).__name__}: {str(error)[:200]}")
        pool.terminate()
        pool.join()
        return said

    return wait


def work_of(model: Model, window: Shape3) -> int:
    """Operations of the direct algorithm for one window: two for each product of convolutions and matrices."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        x = torch.empty(1, 1, *window)
    module = model.make().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return int(counter.get_total_flops())


def relative_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Relative L2 error; NaN where a value is NaN."""
    a, b = found.double(), reference.double()
    return float((a - b).norm() / b.norm())


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    """Dice of two masks; 1 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2.0 * int((a & b).sum()) / total


class Journal:
    """Rows of a benchmark, written to a file after each, so that a later failure loses none.

    Args:
        path: of the JSON file.
        head: what stands before the rows.
    """

    def __init__(self, path: Path, **head: Any) -> None:
        self.path = path
        self.data: dict[str, Any] = {"machine": machine(), **head, "rows": []}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write()

    def add(self, **row: Any) -> None:
        """Adds a row and prints it."""
        self.data["rows"].append(row)
        shown = {key: value for key, value in row.items() if not isinstance(value, list | dict)}
        print("  ".join(f"{key} {_short(value)}" for key, value in shown.items()), flush=True)
        self.write()

    def note(self, key: str, value: Any) -> None:
        """Keeps something beside the rows."""
        self.data[key] = value
        self.write()

    def write(self) -> None:
        """Writes the file as a whole."""
        waiting = self.path.with_suffix(".part")
        waiting.write_text(json.dumps(plain(self.data), indent=1) + "\n")
        waiting.replace(self.path)

    @contextlib.contextmanager
    def guarded(self, what: str, quiet: bool = False) -> Iterator[None]:
        """Lets the rest of the benchmark go on where a part of it fails; the failure is kept.

        Args:
            what: is measured.
            quiet: says nothing where nothing fails.
        """
        start = time.time()
        try:
            yield
        except Exception as error:
            import traceback

            text = f"{type(error).__name__}: {error}"
            print(f"FAILED {what}: {text[:600]}\n{traceback.format_exc()[-1500:]}", flush=True)
            self.data.setdefault("failures", []).append({"what": what, "error": text[:2000]})
            self.write()
        if not quiet:
            print(f"[{time.time() - start:6.1f} s] {what}", flush=True)


def plain(value: Any) -> Any:
    """Numbers rounded to six digits, NaN as null: what JSON can hold and people can read."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
