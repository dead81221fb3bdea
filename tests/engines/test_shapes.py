"""Profiles of window shapes, functions inlined for runtimes that know none, names of processors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests import networks
from tests.engines.contract import images, run
from wetread.engines import EngineInfo, make_engine, processor
from wetread.engines.functions import has_functions
from wetread.engines.openvino import OpenVinoEngine, runtime
from wetread.engines.openvino.dynamic import activation_estimate, reshape
from wetread.errors import EngineError, GraphError
from wetread.graph import Graph
from wetread.package import ShapeProfile

PROFILE = ShapeProfile(min=(8, 8, 8), opt=(16, 16, 8), max=(32, 16, 16))


@pytest.mark.parametrize("backend", ["openvino", "reference", "onnxruntime"])
def test_windows_outside_the_profile_are_refused(backend: str) -> None:
    engine = make_engine(Graph(networks.unet((1, 2), (4, 8))), backend, threads=1, shapes=PROFILE)
    for window in ((4, 8, 8), (8, 8, 24), (40, 16, 16)):
        with pytest.raises(EngineError, match=r"windows are \(8, 8, 8\) to \(32, 16, 16\), asked for \("):
            engine.context(window)
        with pytest.raises(EngineError, match="asked for"):
            engine.output_shape(window)
    engine.context((32, 8, 16)).close()
    engine.close()


@pytest.mark.parametrize("network", [networks.unet((1, 2), (4, 8)), networks.int8_chain()])
def test_one_compiled_network_serves_the_whole_profile(network: onnx.ModelProto) -> None:
    graph = Graph(network)
    many = make_engine(graph, "openvino", threads=1, shapes=PROFILE)
    each = make_engine(graph, "openvino", threads=1)
    assert isinstance(many, OpenVinoEngine)
    for window in (PROFILE.min, PROFILE.opt, PROFILE.max, (24, 10, 12)):
        assert many.output_shape(window) == each.output_shape(window)
        x = images(2, 1, window)
        with many.context(window, 2) as a, each.context(window, 2) as b:
            expected = run(each, b, x)
            found = run(many, a, x)
        # kernels may differ with the shape known or not: float32 noise, or one step of a quantised tensor
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert len({id(made.network) for made in many._compiled.values()}) == 1
    assert many.bytes < each.bytes


def test_windows_that_the_network_cannot_take_are_refused_before_they_run() -> None:
    engine = make_engine(Graph(networks.unet((1, 2), (4, 8))), "openvino", threads=1, shapes=PROFILE)
    with pytest.raises(EngineError, match=r"does not take windows of \(9, 8, 8\)"):
        engine.context((9, 8, 8))


def test_a_profile_of_one_shape_is_a_fixed_shape() -> None:
    one = ShapeProfile(min=(8, 8, 8), opt=(8, 8, 8), max=(8, 8, 8))
    engine = make_engine(Graph(networks.unet((1, 2), (4, 8))), "openvino", threads=1, shapes=one)
    assert isinstance(engine, OpenVinoEngine)
    with engine.context((8, 8, 8)):
        assert not engine._compile((8, 8, 8)).network.inputs[0].get_partial_shape().is_dynamic


def test_estimate_of_activations_without_compiling() -> None:
    """Against the estimate from the compiled network, which itself is held to the process's growth."""
    engine = OpenVinoEngine(networks.unet((1, 2), (16, 32, 64)).SerializeToString(), threads=1)
    window = (64, 64, 32)
    model = reshape(runtime.load(), engine._model, engine.inputs, window)
    compiled = engine._compile(window).activations
    assert 0.5 * compiled <= activation_estimate(model) <= 2 * compiled


def with_function() -> onnx.ModelProto:
    """SiLU as a function of our own domain, as the passes write it where the opset has none."""
    body = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]
    silu = helper.make_function("wetread", "Silu", ["x"], ["y"], body, [helper.make_opsetid("", 18)])
    b = networks.Builder()
    x = b.add("Silu", [b.conv("image", (1, 2))], domain="wetread")
    model = b.model({"image": (None, 1, *networks.FREE)}, {"logits": (x, (None, 2, *networks.FREE))})
    model.functions.append(silu)
    model.opset_import.append(helper.make_opsetid("wetread", 1))
    return model


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("from_file", [True, False])
def test_our_functions_are_inlined(backend: str, from_file: bool, tmp_path: Path) -> None:
    graph = Graph(with_function())
    source = networks.save(with_function(), tmp_path / "net.onnx") if from_file else graph
    x = images(1, 1)
    engine = make_engine(source, backend, threads=1)
    with engine.context(x.shape[2:]) as context:
        found = run(engine, context, x)
    expected = graph.evaluate({"image": x})["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_functions_are_found_without_reading_weights(tmp_path: Path) -> None:
    assert has_functions(networks.save(with_function(), tmp_path / "a.onnx"))
    assert not has_functions(networks.save(networks.unet(), tmp_path / "b.onnx"))
    for content in (b"", b"\xff" * 30, b"this is no network", networks.unet().SerializeToString()[:999]):
        (tmp_path / "c.onnx").write_bytes(content)
        assert not has_functions(tmp_path / "c.onnx")
    with pytest.raises(GraphError, match=r"none\.onnx"):
        has_functions(tmp_path / "none.onnx")


def test_fingerprints_are_names_of_folders_and_tell_devices_apart() -> None:
    a = EngineInfo("openvino", "int8", "CPU (Some Processor avx2, 8 threads)", "1.0/x")
    b = EngineInfo("openvino", "int8", "CPU (Some Processor avx2, 4 threads)", "1.0/x")
    assert a.fingerprint == b.fingerprint == "openvino-1.0-x-int8-CPU-Some-Processor-avx2"
    long = [EngineInfo("openvino", "int8", f"CPU ({'very ' * 40}{last})", "1") for last in ("avx2", "sve")]
    assert long[0].fingerprint != long[1].fingerprint
    assert all(len(info.fingerprint) <= 128 for info in long)


def test_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two machines of one cloud's "model name" may have kernels that differ: the fingerprint must."""
    text = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_vnni sse\n"
    (tmp_path / "cpuinfo").write_text(text)
    for function in (processor.instruction_sets, processor.processor_name):
        function.cache_clear()
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    assert processor.processor_text() == "Some CPU avx2+avx512f+avx512_vnni"
    for function in (processor.instruction_sets, processor.processor_name):
        function.cache_clear()
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "none")
    assert processor.instruction_sets() == ""
    assert processor.processor_name()
    for function in (processor.instruction_sets, processor.processor_name):
        function.cache_clear()
