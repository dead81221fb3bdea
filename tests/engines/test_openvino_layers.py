"""What OpenVINO says it executes: the proof that int8 layers run in int8, and that nothing else does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests import networks
from tests.engines.contract import images
from wetread.engines import Layered, LayerRun, make_engine
from wetread.engines.openvino import OpenVinoEngine, runtime
from wetread.engines.openvino.layers import _precision
from wetread.errors import EngineError, EngineUnavailableError
from wetread.graph import Graph
from wetread.package import ShapeProfile

SIZE = (8, 8, 8)


def engine_of(model: onnx.ModelProto) -> OpenVinoEngine:
    engine = make_engine(Graph(model), "openvino", threads=1)
    assert isinstance(engine, OpenVinoEngine)
    assert isinstance(engine, Layered)
    return engine


def by_node(layers: tuple[LayerRun, ...]) -> dict[str, LayerRun]:
    return {node: layer for layer in layers for node in layer.nodes}


def has_vnni() -> bool:
    return "INT8" in runtime.load().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_int8_convolutions_run_in_int8_and_the_rest_does_not() -> None:
    if not has_vnni():
        pytest.skip("this processor has no int8 kernels")
    engine = engine_of(networks.int8_chain())
    found = by_node(engine.layers(SIZE))
    for name in ("int8_a", "int8_b", "int8_up"):
        assert found[name].precision == "int8", found[name]
        assert found[name].kernel.lower().endswith("i8")
    head = found.get("head") or found["logits"]
    assert (head.type, head.precision) == ("Convolution", "float32")
    assert {layer.precision for layer in engine.layers() if layer.type == "MVN"} == {"float32"}
    assert engine.info.precision == "int8"


def test_float32_networks_have_no_int8_layer() -> None:
    layers = engine_of(networks.unet((1, 2), (4, 8))).layers(SIZE)
    assert {layer.precision for layer in layers if layer.type == "Convolution"} == {"float32"}
    assert sum(layer.type in ("Convolution", "Deconvolution") for layer in layers) == 6


def test_the_numbers_are_those_of_the_quantised_graph() -> None:
    """One int8 step of the input is 0.03; float32 without rounding would differ by far more than 1e-4."""
    graph = Graph(networks.int8_chain())
    x = images(1, 1, SIZE)
    engine = engine_of(graph.model)
    out = np.full((1, *engine.output_shape(SIZE)), np.nan, np.float32)
    with engine.context(SIZE) as context:
        context.submit((x,), (out,)).wait()
    expected = graph.evaluate({"image": x})["logits"]
    assert np.sqrt(np.mean((out - expected) ** 2)) < 0.01 * expected.std()


def test_which_shape() -> None:
    engine = engine_of(networks.unet((1, 2), (4, 8)))
    with pytest.raises(EngineError, match="give a shape"):
        engine.layers()
    with pytest.raises(EngineError, match=r"\(7, 8, 8\)"):
        engine.layers((7, 8, 8))
    assert engine.layers(SIZE) == engine.layers()
    fixed = engine_of(networks.unet((1, 2), (4, 8), window=SIZE))
    assert len(fixed.layers()) == len(engine.layers())


@pytest.mark.parametrize(
    ("runtime_type", "kernel", "expected"),
    [
        ("u8", "brgconv_avx512_I8", "int8"),
        ("u8", "ref_any_f32", "float32"),
        ("f32", "jit_avx512_f32", "float32"),
        ("bf16", "brgconv_avx512_amx_bf16", "bfloat16"),
        ("i8", "", "int8"),
        ("nf4", "x_y", "nf4"),
    ],
)
def test_precision_of_a_step(runtime_type: str, kernel: str, expected: str) -> None:
    assert _precision(runtime_type, kernel) == expected


@pytest.mark.parametrize(("network", "asked"), [("int8", "float32"), ("float32", "int8"), ("int8", "float8")])
def test_a_precision_that_the_graph_has_not_is_refused(network: str, asked: str) -> None:
    """It would be recorded, and the gate asked for it, without being what runs."""
    model = networks.int8_chain() if network == "int8" else networks.unet((1, 2), (4, 8))
    with pytest.raises(
        EngineUnavailableError, match=f"the network is {network} and cannot be run as {asked}"
    ):
        make_engine(Graph(model), "openvino", precision=asked)
    assert make_engine(Graph(model), "openvino", precision=network).info.precision == network


def test_int8_stays_int8_where_windows_may_vary() -> None:
    if not has_vnni():
        pytest.skip("this processor has no int8 kernels")
    profile = ShapeProfile(min=(8, 8, 8), opt=SIZE, max=(16, 16, 16))
    engine = make_engine(Graph(networks.int8_chain()), "openvino", threads=1, shapes=profile)
    assert isinstance(engine, OpenVinoEngine)
    found = by_node(engine.layers(SIZE))
    assert {found[name].precision for name in ("int8_a", "int8_b", "int8_up")} == {"int8"}
