"""The ONNX Runtime engine beyond the contract: types, in-place outputs, messages, devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import networks
from tests.engines.contract import WINDOW, EngineContract, images, poisoned, run
from wetread.engines import Engine, Layered, make_engine, processor
from wetread.engines.onnxruntime import OnnxRuntimeEngine, runtime
from wetread.errors import (
    DeviceMemoryError,
    EngineError,
    EngineUnavailableError,
    GraphError,
    UnsupportedOperatorError,
)
from wetread.graph import Graph
from wetread.graph.memory import activation_bytes

pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")

SIZE = (8, 8, 8)


class TestOnnxRuntime(EngineContract):
    def make(self, model: onnx.ModelProto) -> Engine:
        return make_engine(Graph(model), "onnxruntime", threads=2)

    def test_from_a_file(self, graph: Graph, tmp_path: Path) -> None:
        engine = make_engine(graph.save(tmp_path / "net.onnx"), "onnxruntime")
        with engine.context(WINDOW) as context:
            assert np.isfinite(run(engine, context, images(1))).all()

    def test_a_running_context_refuses_another_batch(self, engine: Engine) -> None:
        window = (64, 48, 48)
        with engine.context(window, 4) as context:
            ticket = context.submit((images(4, 2, window),), poisoned(engine, 4, window))
            with pytest.raises(EngineError, match="still running"):
                context.submit((images(1, 2, window),), poisoned(engine, 1, window))
            ticket.wait()


def test_several_outputs() -> None:
    graph = Graph(networks.unet((1, 2), (4, 8))).with_outputs(["leakyrelu_2"])
    x = images(2, 1, SIZE)
    expected = graph.evaluate({"image": x})
    for backend in ("onnxruntime", "openvino"):
        engine = make_engine(graph, backend, threads=1)
        outs = tuple(np.full(expected[o.name].shape, np.nan, np.float32) for o in engine.outputs)
        with engine.context(SIZE, 2) as context:
            context.submit((x,), outs).wait()
        for info, out in zip(engine.outputs, outs, strict=True):
            np.testing.assert_allclose(out, expected[info.name], atol=1e-5 * np.abs(out).max())


def test_int8_graphs() -> None:
    """The numbers are the quantised graph's, whichever kernels ONNX Runtime takes for them."""
    graph = Graph(networks.int8_chain())
    engine = make_engine(graph, "onnxruntime", threads=1)
    assert engine.info.precision == "int8"
    x = images(1, 1, SIZE)
    with engine.context(SIZE) as context:
        found = run(engine, context, x)
    expected = graph.evaluate({"image": x})["logits"]
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.01 * expected.std()


def test_layers_tell_integer_kernels_from_floating_ones() -> None:
    b = networks.Builder()
    s, z = b.constant(np.array(0.05, np.float32), "s"), b.constant(np.array(0, np.int8), "z")
    w = b.constant(np.ones((2, 1, 3, 3, 3), np.int8), "w")
    x = b.add("QLinearConv", [b.add("QuantizeLinear", ["image", s, z]), s, z, w, s, z, s, z], pads=[1] * 6)
    x = b.conv(b.add("DequantizeLinear", [x, s, z]), (2, 2))
    b.nodes[-1].name = "floating"
    model = b.model({"image": (None, 1, *networks.FREE)}, {"out": (x, (None, 2, *networks.FREE))})
    engine = make_engine(Graph(model), "onnxruntime", threads=1)
    assert isinstance(engine, OnnxRuntimeEngine)
    assert isinstance(engine, Layered)
    layers = {layer.type: layer for layer in engine.layers(SIZE)}
    assert layers["QLinearConv"].precision == "int8"
    assert layers["QLinearConv"].kernel.endswith(".QLinearConv")
    assert (layers["Conv"].precision, layers["Conv"].nodes) == ("float32", ("floating",))
    with pytest.raises(EngineError, match="three positive"):
        engine.layers((0, 8, 8))


def test_float16_and_float8_graphs() -> None:
    b = networks.Builder(dtype=np.float16)
    x = b.add("Relu", [b.conv("image", (1, 2))])
    half = Graph(b.model({"image": (None, 1, *networks.FREE)}, {"out": (x, (None, 2, *networks.FREE))}))
    engine = make_engine(half, "onnxruntime", threads=1)
    assert (engine.info.precision, engine.inputs[0].dtype) == ("float16", "float16")
    image = images(1, 1, SIZE).astype(np.float16)
    with engine.context(SIZE) as context:
        found = run(engine, context, image)
    expected = half.evaluate({"image": image})["out"]
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())  # 11 bits of mantissa

    quantised = Graph(float8())
    engine = make_engine(quantised, "onnxruntime", threads=1)
    assert engine.info.precision == "float8"
    with engine.context(SIZE) as context:
        found = run(engine, context, images(1, 1, SIZE))
    expected = quantised.evaluate({"image": images(1, 1, SIZE)})["out"]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def float8() -> onnx.ModelProto:
    """A convolution over an input that is rounded to E4M3."""
    b = networks.Builder()
    scale = b.constant(np.array(0.05, np.float32), "scale")
    b.weights.append(onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT8E4M3FN, [], [0.0]))
    q = b.add("QuantizeLinear", ["image", scale, "zero"])
    x = b.conv(b.add("DequantizeLinear", [q, scale, "zero"]), (1, 2))
    return b.model(
        {"image": (None, 1, *networks.FREE)}, {"out": (x, (None, 2, *networks.FREE))}, opset=19
    )  # fmt: skip


def test_another_precision_than_the_graphs_is_refused() -> None:
    with pytest.raises(EngineUnavailableError, match="own types, float32, not float16"):
        make_engine(Graph(networks.threshold()), "onnxruntime", precision="float16")


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "npu", "cpu:3", "cuda:x"])
def test_devices_that_this_build_does_not_have(device: str) -> None:
    if "CUDAExecutionProvider" in runtime.load().get_available_providers() and device.startswith("cuda"):
        pytest.skip("this build has CUDA")
    with pytest.raises(EngineUnavailableError, match=f"no device '{device}'"):
        make_engine(Graph(networks.threshold()), "onnxruntime", device=device)


def test_a_device_that_does_not_load_is_no_silent_processor() -> None:
    """ONNX Runtime would fall back to the CPU and say nothing."""

    class Ort:
        class Session:
            def get_providers(self) -> list[str]:
                return ["CPUExecutionProvider"]

        def get_available_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def InferenceSession(self, *_: object, **__: object) -> Session:
            return self.Session()

    chosen = runtime.providers(Ort(), "cuda:1")
    assert chosen[0] == ("CUDAExecutionProvider", {"device_id": 1, "use_tf32": 0})
    with pytest.raises(EngineUnavailableError, match="cannot load it"):
        runtime.session(Ort(), b"", None, chosen, "net")


def test_unknown_operator_is_named() -> None:
    model = networks.threshold()
    model.graph.node[0].op_type = "Convolve"
    with pytest.raises(UnsupportedOperatorError, match="Convolve"):
        make_engine(Graph(model), "onnxruntime")


def test_operators_that_contradict_are_named() -> None:
    model = networks.threshold()
    model.graph.node[0].input[1] = "nothing"
    with pytest.raises(GraphError, match="nothing"):
        make_engine(Graph(model), "onnxruntime")


def test_windows_that_do_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "available_bytes", lambda: 2**20)
    engine = make_engine(Graph(networks.unet((1, 2), (8, 16))), "onnxruntime", threads=1)
    engine.context((8, 8, 8)).close()
    with pytest.raises(DeviceMemoryError, match=r"\(64, 64, 64\) take"):
        engine.context((64, 64, 64))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory"), DeviceMemoryError),
        (MemoryError(), DeviceMemoryError),
        (RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Non-zero status"), EngineError),
    ],
)  # fmt: skip
def test_failures_of_the_runtime(error: BaseException, kind: type) -> None:
    found = runtime.failure(error, "it failed")
    assert type(found) is kind
    assert "ONNXRuntimeError" not in str(found)


def test_activations_by_hand() -> None:
    """Two maps of 4 channels live at once at each convolution; the activations between work in place."""
    b = networks.Builder()
    x = b.add("Relu", [b.conv("image", (1, 4))])
    x = b.add("Relu", [b.conv(x, (4, 4))])
    x = b.conv(x, (4, 1))
    model = b.model({"image": (None, 1, *networks.FREE)}, {"out": (x, (None, 1, *networks.FREE))})
    assert activation_bytes(Graph(model), (8, 8, 8)) == 2 * 4 * 8**3 * 4
    with pytest.raises(GraphError):
        activation_bytes(Graph(networks.unet((1, 2), (4, 8))), (9, 8, 8))
