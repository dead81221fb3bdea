"""The null engine and its clock."""

from __future__ import annotations

import threading

import numpy as np
import onnx
import pytest

from tests.engines.contract import WINDOW, EngineContract, images, poisoned
from wetread.engines import Engine, TensorInfo, make_engine
from wetread.engines.null import NullEngine, VirtualClock
from wetread.errors import EngineError
from wetread.graph import Graph


class TestNull(EngineContract):
    computes = False

    def make(self, model: onnx.ModelProto) -> Engine:
        return make_engine(Graph(model), "null")


INPUTS = (TensorInfo("image", (None, 2, None, None, None), "float32"),)
OUTPUTS = (TensorInfo("logits", (None, 3, None, None, None), "float32"),)


def engine(**options) -> NullEngine:
    return NullEngine(INPUTS, OUTPUTS, **options)


def test_constants() -> None:
    null = engine(logits=(1.5, -2.0))
    out = poisoned(null, 2)
    with null.context(WINDOW, 2) as context:
        context.submit((images(2),), out).wait()
    assert [np.unique(out[0][:, c]).tolist() for c in range(3)] == [[1.5], [-2.0], [0.0]]


def test_time_passes_only_when_told() -> None:
    null = engine(seconds_per_window=0.25)
    with null.context(WINDOW, 4) as context:
        ticket = context.submit((images(4),), poisoned(null, 4))
        assert not ticket.done()
        with pytest.raises(EngineError, match="still running"):
            context.submit((images(1),), poisoned(null, 1))
        null.clock.advance(0.999)
        assert not ticket.done()
        null.clock.advance_to(1.0)
        assert ticket.done()
        assert null.clock.now_s == 1.0


def test_waiting_moves_the_clock_and_never_back() -> None:
    null = engine(seconds_per_window=0.5)
    with null.context(WINDOW) as context:
        context.submit((images(1),), poisoned(null, 1)).wait()
        assert null.clock.now_s == 0.5
        null.clock.advance_to(0.1)
        assert null.clock.now_s == 0.5
    with pytest.raises(ValueError, match="does not go back"):
        null.clock.advance(-1)


@pytest.mark.parametrize(("parallel", "ends"), [(1, [2.0, 4.0, 6.0]), (2, [2.0, 2.0, 4.0])])
def test_batches_queue_on_the_device(parallel: int, ends: list[float]) -> None:
    null = engine(seconds_per_window=1.0, parallel=parallel)
    contexts = [null.context(WINDOW, 2) for _ in ends]
    tickets = [context.submit((images(2),), poisoned(null, 2)) for context in contexts]
    assert [ticket.finish_s for ticket in tickets] == ends


def test_an_idle_device_starts_now() -> None:
    null = engine(seconds_per_window=1.0, clock=VirtualClock(100.0))
    null.clock.advance(50)
    with null.context(WINDOW) as context:
        assert context.submit((images(1),), poisoned(null, 1)).finish_s == 151.0


def test_clock_from_threads() -> None:
    clock = VirtualClock()
    threads = [threading.Thread(target=lambda: [clock.advance(0.001) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.now_s == pytest.approx(2.0, abs=1e-9)


def test_claims_of_size() -> None:
    null = engine(bytes=7, context_bytes=11)
    assert null.bytes == 7
    assert null.context(WINDOW).bytes == 11


def test_impossible_speeds_are_refused() -> None:
    with pytest.raises(EngineError):
        engine(seconds_per_window=-1.0)
    with pytest.raises(EngineError):
        engine(parallel=0)
