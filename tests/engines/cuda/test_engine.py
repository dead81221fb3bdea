"""The CUDA engine: the whole contract, by library kernels on the processor or on a GPU (WETREAD_TEST_DEVICE=cuda)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests import networks
from tests.conftest import ball_recipe
from tests.engines.contract import EngineContract, images, poisoned, run
from wetread.build.pack import pack
from wetread.engines import Engine, Layered, make_engine, processor
from wetread.engines.cuda import network_of
from wetread.engines.cuda.engine import CudaEngine
from wetread.engines.cuda.plan import Plan
from wetread.engines.registry import Request
from wetread.errors import (
    DeviceMemoryError,
    EngineError,
    EngineUnavailableError,
    GateError,
    NotFiniteError,
    UnsupportedOperatorError,
)
from wetread.graph import Graph
from wetread.package import GateRecord, Package, ShapeProfile

pytestmark = pytest.mark.peer

DEVICE = os.environ.get("WETREAD_TEST_DEVICE", "cpu")
SIZE = (8, 8, 8)


def made(graph: Graph, **options: object) -> CudaEngine:
    return CudaEngine(network_of(Request(graph, "graph")), device=DEVICE, **options)


class TestCuda(EngineContract):
    def make(self, model: onnx.ModelProto) -> Engine:
        return make_engine(Graph(model), "cuda", device=DEVICE)


class TestCudaInGroups(EngineContract):
    """Windows run two at a time; groups are filled up."""

    def make(self, model: onnx.ModelProto) -> Engine:
        return made(Graph(model), batch=2)


def unet(**options: object) -> Graph:
    return Graph(networks.unet((1, 2), (4, 8), **options))


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """A U-Net with windows of 16 × 8 × 8, two at once."""
    file = networks.save(networks.unet((1, 1), (4, 8)), tmp_path / "net.onnx")
    tiling = {"kind": "lattice", "window": [16, 8, 8], "stride": [8, 4, 4], "batch": 2}
    (tmp_path / "recipe.json").write_text(json.dumps(ball_recipe(tiling=tiling)))
    return pack(file, tmp_path / "recipe.json", tmp_path / "models")


def of_package(package: Package, **options: object) -> CudaEngine:
    engine = make_engine(package, "cuda", device=DEVICE, **options)
    assert isinstance(engine, CudaEngine)
    return engine


def test_a_plan_is_made_once_announced_and_kept(package: Package) -> None:
    first = of_package(package)
    assert [notice.code for notice in first.notices] == ["PLAN_BUILT"]
    assert len(first.plans) == 1
    folder = package.cache_dir(first.info.fingerprint)
    assert folder is not None
    assert (folder / first.plans[0]).is_file()
    again = of_package(package)
    assert (again.notices, again.plans) == ([], first.plans)
    x = images(3, 1, (16, 8, 8))
    with first.context((16, 8, 8), 3) as a, again.context((16, 8, 8), 3) as b:
        np.testing.assert_array_equal(run(first, a, x), run(again, b, x))


def test_a_plan_loads_without_onnx(package: Package) -> None:
    """The engine of a package whose plan is there knows the network from the manifest alone."""
    engine = of_package(package)
    x = images(2, 1, (16, 8, 8))
    with engine.context((16, 8, 8), 2) as context:
        expected = run(engine, context, x)
    script = f"""
import sys
import numpy as np
from wetread.engines import make_engine
from wetread.package import Package
engine = make_engine(Package.open({str(package.path)!r}), "cuda", device={DEVICE!r})
x = np.random.default_rng(0).standard_normal((2, 1, 16, 8, 8)).astype(np.float32)
y = np.full((2, *engine.output_shape((16, 8, 8))), np.nan, np.float32)
with engine.context((16, 8, 8), 2) as context:
    context.submit((x,), (y,)).wait()
assert not engine.notices, engine.notices
loaded = sorted(name for name in sys.modules if name.split(".")[0] in ("onnx", "onnx_ir", "onnxscript", "openvino"))
assert not loaded, loaded
np.save(sys.argv[1], y)
"""
    out = package.path / "y.npy"
    subprocess.run([sys.executable, "-c", script, str(out)], check=True, timeout=200)
    np.testing.assert_array_equal(np.load(out), expected)


@pytest.mark.parametrize("fault", ["damaged", "driver", "network"])
def test_plans_that_do_not_fit_are_refused_and_made_anew(package: Package, fault: str) -> None:
    first = of_package(package)
    folder = package.cache_dir(first.info.fingerprint)
    assert folder is not None
    path = folder / first.plans[0]
    if fault == "damaged":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        plan = Plan.load(folder, path.name.removesuffix(".plan.json"))
        other = Plan(plan.program, plan.placement, {**plan.provenance, fault: "another"})
        other.save(folder, path.name.removesuffix(".plan.json"))
    again = of_package(package)
    assert [notice.code for notice in again.notices] == ["PLAN_REFUSED", "PLAN_BUILT"]
    assert fault == "damaged" or f"for {fault} another" in again.notices[0].text
    assert again.plans == first.plans
    assert not of_package(package).notices


def test_the_gate_speaks_of_one_plan(package: Package) -> None:
    engine = of_package(package)
    record = GateRecord(backend="cuda", precision="float32", status="passed")
    judged = package.with_device_gate(engine.info.fingerprint, record, {}, engine.plans)
    of_package(judged).close()
    folder = package.cache_dir(engine.info.fingerprint)
    assert folder is not None
    path = folder / engine.plans[0]
    path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format":  1'))
    with pytest.raises(GateError, match="another plan"):
        of_package(judged)


def test_other_windows_get_plans_of_their_own_and_share_the_weights(package: Package) -> None:
    engine = of_package(package)
    folder = package.cache_dir(engine.info.fingerprint)
    assert folder is not None
    with engine.context((16, 8, 8)):
        before = engine.bytes
    with engine.context((8, 16, 8)) as context:
        assert np.isfinite(run(engine, context, images(1, 1, (8, 16, 8)))).all()
        assert engine.bytes == before
    assert len(engine.plans) == 2
    assert len(list(folder.glob("*.safetensors"))) == 1


def test_a_second_context_adds_its_activations_only() -> None:
    engine = made(unet())
    with engine.context(SIZE) as first:
        weights = engine.bytes
        assert weights > 15_000  # of 15.2 KiB in the file, some of it in the steps now
        before = torch.cuda.memory_allocated() if DEVICE != "cpu" else 0
        with engine.context(SIZE) as second:
            assert engine.bytes == weights
            assert second.bytes == first.bytes > 0
            if DEVICE != "cpu":  # torch hands out memory in blocks of 512 bytes
                assert torch.cuda.memory_allocated() - before <= second.bytes + 16 * 512


def test_arenas_are_sized_before_use() -> None:
    engine = made(unet())
    plan = engine.plan(SIZE)
    with engine.context(SIZE, 2) as context:
        assert context.bytes >= plan.bytes >= plan.placement.floor > 0


@pytest.mark.parametrize("batch", [1, 2])
def test_tensors_and_dlpack_objects_are_taken_as_they_are(batch: int) -> None:
    graph = unet()
    engine = made(graph, batch=batch)
    x = images(3, 1, SIZE)
    device = torch.device(DEVICE, 0) if DEVICE != "cpu" else torch.device("cpu")
    given = torch.from_numpy(x).to(device)
    with engine.context(SIZE, 3) as context:
        expected = run(engine, context, x)
        out = torch.full((3, 2, *SIZE), float("nan"), device=device)
        context.submit((given,), (out,)).wait()
        np.testing.assert_array_equal(out.cpu().numpy(), expected)
        out.fill_(float("nan"))
        context.submit((Dlpack(given),), (Dlpack(out),)).wait()
        np.testing.assert_array_equal(out.cpu().numpy(), expected)
        np.testing.assert_array_equal(given.cpu().numpy(), x)
        for bad in (given.double(), given.transpose(2, 3), given[:, :, :4], [1.0]):
            with pytest.raises(EngineError):
                context.submit((bad,), (out,))
        with pytest.raises(EngineError, match="gradients"):
            context.submit((given,), (torch.zeros_like(out, requires_grad=True),))


class Dlpack:
    """An array of some other library."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: object) -> object:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 5e-3), ("bfloat16", 4e-2), ("tf32", 2e-3)])
def test_a_float32_graph_in_other_precisions(precision: str, tolerance: float) -> None:
    """Eleven layers, each rounded to 11, 8 or 11 bits: a few units of the last place of the largest output."""
    if DEVICE == "cpu" and precision == "tf32":
        tolerance = 1e-5  # a processor has no such units
    graph = unet()
    engine = made(graph, precision=precision)
    assert engine.info.precision == precision
    x = images(2, 1, SIZE)
    with engine.context(SIZE, 2) as context:
        found = run(engine, context, x)
    expected = graph.evaluate({"image": x})["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_int8_graphs() -> None:
    """Integers throughout: what differs from the evaluator is where float16 rounds a value across an integer's edge."""
    graph = Graph(networks.int8_chain())
    engine = made(graph)
    assert engine.info.precision == "int8"
    x = images(1, 1, SIZE)
    with engine.context(SIZE) as context:
        found = run(engine, context, x)
    expected = graph.evaluate({"image": x})["logits"]
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.02 * expected.std()
    assert {layer.precision for layer in engine.layers() if layer.name in ("int8_b", "int8_up")} == {"int8"}


def test_precisions_that_a_graph_does_not_have() -> None:
    with pytest.raises(EngineUnavailableError, match=r"float32 network.*not in int8"):
        made(unet(), precision="int8")
    with pytest.raises(EngineUnavailableError, match=r"int8 network.*not in float16"):
        made(Graph(networks.int8_chain()), precision="float16")


def test_values_beyond_the_range_of_a_half_are_named() -> None:
    engine = made(Graph(networks.threshold()), precision="float16")
    x = images(2, 1, SIZE)
    x[1, 0, 3, 3, 3] = 1e6
    with engine.context(SIZE, 2) as context:
        with pytest.raises(
            NotFiniteError, match=r"1 of 1024 values are beyond 6.55e\+04, the largest that float16 holds"
        ):
            context.submit((x,), poisoned(engine, 2, SIZE)).wait()
        assert np.isfinite(run(engine, context, images(2, 1, SIZE))).all()


def test_what_was_wrong_in_one_batch_is_forgotten_in_the_next() -> None:
    """A group that is not full keeps older windows behind the new ones; what is in them is nobody's."""
    engine = made(unet(), batch=4)
    bad = images(4, 1, SIZE)
    bad[3, 0, 1, 2, 3] = np.nan
    with engine.context(SIZE, 4) as context:
        with pytest.raises(NotFiniteError, match="1 of 2048"):
            context.submit((bad,), poisoned(engine, 4, SIZE)).wait()
        assert np.isfinite(run(engine, context, images(1, 1, SIZE))).all()


def test_layers_say_what_runs_each_step() -> None:
    engine = made(unet())
    assert isinstance(engine, Layered)
    with pytest.raises(EngineError, match="give a shape"):
        engine.layers()
    layers = engine.layers(SIZE)
    assert engine.layers() == layers
    assert {layer.type for layer in layers} >= {"conv", "upconv"}
    assert {layer.precision for layer in layers} == {"float32"}
    if DEVICE == "cpu":
        assert {layer.kernel for layer in layers} <= {"library", "torch"}
    nodes = {node for layer in layers for node in layer.nodes}
    assert {"conv_0", "instancenormalization_1"} <= nodes


def test_several_outputs() -> None:
    graph = unet().with_outputs(["leakyrelu_2"])
    x = images(2, 1, SIZE)
    expected = graph.evaluate({"image": x})
    engine = made(graph)
    outs = tuple(np.full(expected[o.name].shape, np.nan, np.float32) for o in engine.outputs)
    with engine.context(SIZE, 2) as context:
        context.submit((x,), outs).wait()
    for info, out in zip(engine.outputs, outs, strict=True):
        np.testing.assert_allclose(out, expected[info.name], atol=1e-5 * np.abs(out).max())


def test_windows_outside_of_the_profile() -> None:
    profile = ShapeProfile(min=(8, 8, 8), opt=(8, 8, 16), max=(16, 16, 16))
    engine = make_engine(unet(), "cuda", device=DEVICE, shapes=profile)
    engine.context((16, 8, 8)).close()
    with pytest.raises(EngineError, match="profile"):
        engine.context((32, 8, 8))


def test_an_unknown_operator_is_named() -> None:
    model = networks.threshold(window=SIZE)
    model.graph.node[0].op_type = "Convolve"
    with pytest.raises(UnsupportedOperatorError, match="Convolve"):
        made(Graph(model))


@pytest.mark.parametrize("device", ["npu", "cuda:x", "cpu:1", "cuda:99"])
def test_devices_that_are_none(device: str) -> None:
    with pytest.raises(EngineUnavailableError, match=r"no device|no GPU"):
        make_engine(unet(), "cuda", device=device)


def test_a_context_that_does_not_fit_leaves_others_running(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = made(unet())
    x = images(1, 1, SIZE)
    with engine.context(SIZE) as context:
        expected = run(engine, context, x)
        if DEVICE == "cpu":
            monkeypatch.setattr(processor, "available_bytes", lambda: 2**16)
            with pytest.raises(DeviceMemoryError, match="MiB"):
                engine.context((64, 64, 64))
        else:
            with pytest.raises(DeviceMemoryError):
                engine.context((1024, 1024, 1024), 4)
        np.testing.assert_array_equal(run(engine, context, x), expected)


def test_closing_the_engine_closes_its_contexts() -> None:
    engine = made(unet())
    context = engine.context(SIZE)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        context.submit((images(1, 1, SIZE),), (np.zeros((1, 2, *SIZE), np.float32),))


@pytest.mark.parametrize("name", ["unet", "int8", "classifier", "threshold"])
def test_nothing_is_read_before_it_is_written(name: str) -> None:
    """The arena is full of NaN before a run, but for what must be zero; places that are shared show as well."""
    graph = Graph(
        {"unet": networks.unet((1, 2), (4, 8)), "int8": networks.int8_chain(), "threshold": networks.threshold(),
         "classifier": networks.classifier()}[name]
    )  # fmt: skip
    engine = made(graph)
    plan = engine.plan(SIZE)
    with engine.context(SIZE) as context:
        x = images(1, 1, SIZE)
        expected = run(engine, context, x)
        context._executable.arena.fill_(255)
        plan.zero_once(context._executable.arena)
        np.testing.assert_array_equal(run(engine, context, x), expected)


def test_sums_of_integers_pass_what_a_half_holds() -> None:
    """27 products of 127 · 127 are 435,483, and only the scale brings them down; the sum itself is exact."""
    b = networks.Builder()
    w = np.full((4, 1, 3, 3, 3), 127, np.int8)
    s, z = b.constant(np.full(4, 1e-3, np.float32), "s"), b.constant(np.zeros(4, np.int8), "z")
    weight = b.add("DequantizeLinear", [b.constant(w, "q"), s, z], axis=0)
    x = b.add("Conv", [b.fake("image", 1 / 127), weight], kernel_shape=[3] * 3, pads=[1] * 6)
    graph = Graph(b.model({"image": (None, 1, *SIZE)}, {"out": (x, (None, 4, *SIZE))}))
    engine = made(graph)
    image = np.ones((1, 1, *SIZE), np.float32)
    with engine.context(SIZE) as context:
        found = run(engine, context, image)
    np.testing.assert_allclose(found, graph.evaluate({"image": image})["out"], rtol=1e-3)  # stored as a half
