"""The OpenVINO engine beyond the contract: precision, zero copies, quiet import, memory, messages."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import networks
from tests.engines.contract import WINDOW, EngineContract, images, poisoned, run
from wetread.engines import Engine, make_engine, processor
from wetread.engines.openvino import OpenVinoEngine, runtime
from wetread.errors import (
    DeviceMemoryError,
    EngineError,
    EngineUnavailableError,
    GraphError,
    UnsupportedOperatorError,
)
from wetread.graph import Graph


class TestOpenVino(EngineContract):
    def make(self, model: onnx.ModelProto) -> Engine:
        return make_engine(Graph(model), "openvino")

    def test_is_auto(self, graph: Graph, engine: Engine) -> None:
        auto = make_engine(graph)
        assert auto.info == engine.info
        assert auto.info.backend == "openvino"

    def test_arithmetic_is_float32_unless_named(self, engine: Engine, graph: Graph) -> None:
        """Where the processor has bfloat16 units OpenVINO would use them: errors near 1e-2 instead of 1e-6."""
        assert engine.info.precision == "float32"
        compiled = engine._compile(WINDOW).network
        hint = compiled.get_property("INFERENCE_PRECISION_HINT")
        assert hint.get_type_name() == "f32"

    def test_outputs_are_written_in_place(self, engine: Engine) -> None:
        """The request's tensor is the caller's memory."""
        out = poisoned(engine, 1)
        with engine.context(WINDOW) as context:
            context.submit((images(1),), out).wait()
            tensor = context._requests[0].get_output_tensor(0)
            assert np.shares_memory(tensor.data, out[0])

    def test_one_stream(self, engine: Engine) -> None:
        compiled = engine._compile(WINDOW).network
        assert compiled.get_property("NUM_STREAMS") == 1

    def test_networks_are_compiled_once_for_each_shape(self, engine: Engine) -> None:
        before = engine.bytes
        with engine.context(WINDOW), engine.context(WINDOW, 3):
            assert engine._compile(WINDOW) is engine._compile(WINDOW)
            once = engine.bytes
            assert before < once
        with engine.context((8, 8, 8)):
            assert engine.bytes > once


BIG = networks.unet((1, 2), (8, 16))


def test_a_running_context_refuses_another_batch() -> None:
    engine = OpenVinoEngine(BIG.SerializeToString(), threads=1)
    window = (64, 64, 64)
    x = images(4, 1, window)
    with engine.context(window, 4) as context:
        ticket = context.submit((x,), poisoned(engine, 4, window))
        with pytest.raises(EngineError, match="still running"):
            context.submit((x,), poisoned(engine, 4, window))
        assert not ticket.done()
        ticket.wait()
    engine.close()


def test_waiting_lets_other_threads_run() -> None:
    engine = OpenVinoEngine(BIG.SerializeToString(), threads=1)
    window = (96, 64, 64)
    ticks = 0
    stop = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.wait(0.002):
            ticks += 1

    thread = threading.Thread(target=tick)
    with engine.context(window, 4) as context:
        thread.start()
        context.submit((images(4, 1, window),), poisoned(engine, 4, window)).wait()
        stop.set()
        thread.join()
    assert ticks >= 3
    engine.close()


def test_stated_activations_cover_what_a_window_takes() -> None:
    """Measured in a process of its own: growth at the first window, against the estimate; within a third."""
    code = """
import sys, numpy as np
from wetread.engines.openvino import OpenVinoEngine
from tests import networks
def rss():
    return int(open('/proc/self/statm').read().split()[1]) * 4096
engine = OpenVinoEngine(networks.unet((1, 2), (16, 32)).SerializeToString())
window = (96, 96, 64)
x, y = np.ones((1, 1, *window), np.float32), np.ones((1, 2, *window), np.float32)
context = engine.context(window)
before = rss()
context.submit((x,), (y,)).wait()
print(context.bytes, rss() - before)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    stated, grown = map(int, _python(code).split())
    assert 0.67 * grown < stated < 1.5 * grown


def _python(code: str, **environment: str) -> str:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
    )  # fmt: skip
    return done.stdout


def test_import_sends_no_telemetry(tmp_path: Path) -> None:
    """``import openvino`` alone reports to the vendor's analytics; ours loads it without that package."""
    code = """
import sys
from wetread.engines.openvino import runtime
assert 'openvino' not in sys.modules
runtime.load()
assert 'openvino' in sys.modules
print(sorted(m for m in sys.modules if m.split('.')[0] == 'openvino_telemetry'))
"""
    assert _python(code, HOME=str(tmp_path)).strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_importing_wetread_imports_no_engine() -> None:
    code = """
import sys
import wetread, wetread.engines, wetread.package
print(sorted({m.split('.')[0] for m in sys.modules} & {'openvino', 'onnx', 'torch', 'onnxruntime'}))
"""
    assert _python(code).strip() == "[]"


def test_bfloat16_on_request() -> None:
    ov = runtime.load()
    graph = Graph(networks.unet((2, 3), (4, 8)))
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(EngineUnavailableError, match="bfloat16"):
            make_engine(graph, "openvino", precision="bfloat16")
        return
    engine = make_engine(graph, "openvino", precision="bfloat16")
    assert engine.info.precision == "bfloat16"
    with engine.context(WINDOW) as context:
        found = run(engine, context, images(1))
    expected = graph.evaluate({"image": images(1)})["logits"]
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < 0.1  # eight bits of mantissa; float32 would be below


def test_unknown_precision_and_device() -> None:
    graph = Graph(networks.threshold())
    with pytest.raises(EngineUnavailableError, match="int3"):
        make_engine(graph, "openvino", precision="int3")
    with pytest.raises(EngineUnavailableError, match="NPU9"):
        make_engine(graph, "openvino", device="NPU9")


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_taken(threads: int) -> None:
    engine = make_engine(Graph(networks.threshold()), "openvino", threads=threads)
    assert f"{threads} threads" in engine.info.device


@pytest.mark.parametrize("content", [b"", b"this is no network", BIG.SerializeToString()[:5000]])
def test_damaged_networks(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(GraphError, match=r"net\.onnx"):
        make_engine(path, "openvino")


def test_unknown_operators_are_named() -> None:
    model = networks.threshold()
    model.graph.node[0].op_type = "Convolve"
    with pytest.raises(UnsupportedOperatorError, match="Convolve"):
        OpenVinoEngine(model.SerializeToString())


def test_networks_of_two_dimensions_are_refused() -> None:
    b = networks.Builder()
    model = b.model({"image": (1, 1, 8, 8)}, {"out": (b.add("Relu", ["image"]), (1, 1, 8, 8))})
    with pytest.raises(GraphError, match="3 spatial axes"):
        OpenVinoEngine(model.SerializeToString())


def test_networks_with_a_fixed_batch_are_refused() -> None:
    with pytest.raises(GraphError, match="batch is fixed at 4"):
        OpenVinoEngine(networks.unet(batch=4).SerializeToString())


def test_float16_networks_say_so() -> None:
    b = networks.Builder(dtype=np.float16)
    x = b.conv("image", (1, 2))
    model = b.model({"image": (None, 1, *networks.FREE)}, {"out": (x, (None, 2, *networks.FREE))})
    engine = make_engine(Graph(model), "openvino")
    assert engine.info.precision == "float16"
    assert engine.inputs[0].dtype == "float16"


def test_quantised_networks_say_so() -> None:
    from tests.graph.test_graph import quantised

    assert make_engine(Graph(quantised()), "openvino").info.precision == "int8"


def test_cache_folder(tmp_path: Path) -> None:
    content = BIG.SerializeToString()
    x = images(1, 1, (16, 16, 16))
    results = []
    for _ in range(2):
        with OpenVinoEngine(content, cache_dir=tmp_path) as engine, engine.context((16, 16, 16)) as context:
            results.append(run(engine, context, x))
    assert list(tmp_path.glob("*.blob"))
    np.testing.assert_array_equal(*results)


def test_control_group_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for text, expected in (("150000 100000", 2), ("max 100000", 64), ("nonsense", 64)):
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: text)
        assert processor.available_threads() == expected


def test_windows_that_do_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "available_bytes", lambda: 10 * 2**20)
    engine = OpenVinoEngine(BIG.SerializeToString())
    engine.context((16, 16, 16)).close()
    with pytest.raises(DeviceMemoryError, match=r"\(64, 64, 64\) take 0\.0 GiB"):
        engine.context((64, 64, 64))


def test_free_memory_is_the_least_of_system_and_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "meminfo": "MemTotal: 9 kB\nMemAvailable:    2048 kB\n",
        "memory.max": "3145728",
        "memory.current": "2097152",
    }
    monkeypatch.setattr(Path, "read_text", lambda self, **_: texts[self.name])
    assert processor.available_bytes() == 2**20
    texts["memory.max"] = "max"
    assert processor.available_bytes() == 2 * 2**20
    texts["meminfo"] = ""
    assert processor.available_bytes() is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("Exception from x.cpp:1:\nstd::bad_alloc"), DeviceMemoryError),
        (MemoryError(), DeviceMemoryError),
        (RuntimeError("Exception from x.cpp:1:\nsomething else"), EngineError),
    ],
)
def test_failures_of_the_runtime(error: BaseException, kind: type) -> None:
    assert type(runtime.failure(error, "it failed")) is kind


def test_a_window_that_cannot_start_leaves_the_context_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenVinoEngine(BIG.SerializeToString())
    window = (16, 16, 16)
    x = images(2, 1, window)
    with engine.context(window, 2) as context:
        expected = run(engine, context, x)
        good = context._requests[1]
        context._requests[1] = _Broken()
        with pytest.raises(EngineError, match="cannot start"):
            context.submit((x,), poisoned(engine, 2, window))
        context._requests[1] = good
        np.testing.assert_array_equal(run(engine, context, x), expected)


class _Broken:
    def __getattr__(self, name: str) -> None:
        raise RuntimeError("no such thing")
