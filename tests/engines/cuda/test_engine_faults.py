"""What becomes of a device's errors; on a GPU (WETREAD_TEST_DEVICE=cuda) real faults, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from tests import networks
from tests.engines.contract import images, poisoned, run
from wetread.engines.cuda import network_of
from wetread.engines.cuda.engine import CudaEngine
from wetread.engines.cuda.faults import Guard, guard_of
from wetread.engines.registry import Request
from wetread.errors import (
    DeviceFaultError,
    DeviceMemoryError,
    EngineError,
    NotFiniteError,
    status_of,
)
from wetread.graph import Graph

pytestmark = pytest.mark.peer

DEVICE = os.environ.get("WETREAD_TEST_DEVICE", "cpu")
SIZE = (8, 8, 8)
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: set WETREAD_TEST_DEVICE=cuda")


def lost() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def answers() -> None:
    """A device that works."""


def engine() -> CudaEngine:
    return CudaEngine(network_of(Request(Graph(networks.unet((1, 2), (4, 8))), "graph")), device=DEVICE)


def test_a_lost_device_is_refused_from_then_on() -> None:
    guard = Guard("cuda:7", lost)
    expected = pytest.raises(DeviceFaultError, match=r"illegal memory.*start the process again")
    with expected, guard.watch("the batch failed"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")
    assert guard.faulted
    with pytest.raises(DeviceFaultError, match="answers nothing any more"), guard.watch("another"):
        pytest.fail("nothing is started on a lost device")
    with pytest.raises(DeviceFaultError):
        guard.check()


def test_one_call_that_failed_leaves_the_device_usable() -> None:
    guard = Guard("cuda:7", answers)
    expected = pytest.raises(EngineError, match="the batch failed: invalid configuration")
    with expected as error, guard.watch("the batch failed"):
        raise RuntimeError("invalid configuration argument")
    assert type(error.value) is EngineError
    guard.check()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_no_fault(error: BaseException) -> None:
    guard = Guard("cuda:7", lost)  # not even asked
    with pytest.raises(DeviceMemoryError, match="smaller window"), guard.watch("a context"):
        raise error
    guard.check()


def test_errors_of_our_own_pass_unless_the_device_was_lost() -> None:
    with pytest.raises(NotFiniteError), Guard("cuda:7", lost).watch("the batch"):
        raise NotFiniteError("1 of 2 values")
    guard = Guard("cuda:7", lost)
    with pytest.raises(DeviceFaultError), guard.watch("the batch"):
        raise EngineError("launching a kernel failed: CUDA error 700, an illegal memory access")
    assert guard.faulted


def test_how_a_fault_appears_outside() -> None:
    assert (status_of(DeviceFaultError("x")).exit_code, status_of(DeviceFaultError("x")).grpc) == (
        35,
        "UNAVAILABLE",
    )
    assert status_of(DeviceFaultError("x")).http == 503
    assert guard_of("cuda:3") is guard_of("cuda:3")


def test_an_engine_on_a_lost_device_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step faults while a batch runs: its ticket says so, and contexts and engine do from then on."""
    made = engine()
    guard = Guard("cpu", lost)
    object.__setattr__(made.device, "guard", guard)
    context, other = made.context(SIZE), made.context(SIZE)
    monkeypatch.setattr(context._executable, "run", lost)
    with pytest.raises(DeviceFaultError):
        context.submit((images(1, 1, SIZE),), poisoned(made, 1, SIZE)).wait()
    with pytest.raises(DeviceFaultError, match="start the process again"):
        other.submit((images(1, 1, SIZE),), poisoned(made, 1, SIZE))
    with pytest.raises(DeviceFaultError):
        made.context(SIZE)
    made.close()


def test_a_context_that_cannot_be_made_leaves_others_running(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    x = images(1, 1, SIZE)
    with made.context(SIZE) as context:
        expected = run(made, context, x)
        plan = made.plan(SIZE)

        def refuse(self: object, device: object) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(type(plan), "arena", refuse)
        with pytest.raises(DeviceMemoryError):
            made.context(SIZE)
        np.testing.assert_array_equal(run(made, context, x), expected)


def test_not_finite_in_one_context_leaves_others_running() -> None:
    """From two threads at once: one always hands in NaN."""
    made = engine()
    good, bad = images(2, 1, SIZE), images(2, 1, SIZE)
    bad[1, 0, 0, 0, 0] = np.nan
    with made.context(SIZE, 2) as context:
        expected = run(made, context, good)
    failures: list[BaseException] = []

    def work(x: np.ndarray, fails: bool) -> None:
        try:
            with made.context(SIZE, 2) as context:
                for _ in range(10):
                    out = poisoned(made, 2, SIZE)
                    ticket = context.submit((x,), out)
                    if fails:
                        with pytest.raises(NotFiniteError, match="1 of"):
                            ticket.wait()
                    else:
                        ticket.wait()
                        np.testing.assert_array_equal(out[0], expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=args) for args in ((good, False), (bad, True))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, failures[0]


FAULT = """
import sys
import numpy as np
import torch
from tests import networks
from wetread.engines import make_engine
from wetread.errors import DeviceFaultError
from wetread.graph import Graph
engine = make_engine(Graph(networks.unet((1, 2), (4, 8))), "cuda")
x = np.ones((1, 1, 8, 8, 8), np.float32)
y = np.zeros((1, 2, 8, 8, 8), np.float32)
a, b = engine.context((8, 8, 8)), engine.context((8, 8, 8))
a.submit((x,), (y,)).wait()
# an index far outside: the assertion on the device is an error from which no process recovers
torch.zeros(4, device="cuda")[torch.tensor([10**6], device="cuda")].add_(1)
refused = 0
for attempt in range(3):
    try:
        (a, b)[attempt % 2].submit((x,), (y,)).wait()
    except DeviceFaultError as error:
        assert "start the process again" in str(error), error
        refused += 1
try:
    engine.context((8, 8, 8))
except DeviceFaultError:
    refused += 1
a.close(), b.close(), engine.close()
print("refused", refused, flush=True)
"""


@on_a_gpu
def test_a_fault_of_the_device_ends_its_use() -> None:
    """A real one, in a process of its own: every context refuses afterwards, and closing does not hang."""
    done = subprocess.run(
        [sys.executable, "-c", FAULT], check=False, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refused 4" in done.stdout


@on_a_gpu
def test_real_lack_of_memory_leaves_others_running() -> None:
    made = engine()
    x = images(1, 1, SIZE)
    with made.context(SIZE) as context:
        expected = run(made, context, x)
        free, _ = torch.cuda.mem_get_info()
        hog = torch.empty(free - 2**20, dtype=torch.uint8, device="cuda")
        with pytest.raises(DeviceMemoryError):
            made.context((96, 96, 96), 2)
        np.testing.assert_array_equal(run(made, context, x), expected)
        del hog
        torch.cuda.empty_cache()
        made.context((96, 96, 96), 2).close()
