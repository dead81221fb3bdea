"""The TensorRT backend's logic, over a TensorRT and a CUDA that run in the processor's memory.

What the fakes have is what `api` lists, and `test_tensorrt_bindings` holds that list to NVIDIA's own bindings. No
number here says anything about a GPU.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from tests import networks
from tests.engines import fake_tensorrt
from tests.engines.contract import WINDOW, EngineContract, images, poisoned, run
from tests.engines.fake_cuda import FakeCuda
from tests.engines.fake_tensorrt import ACTIVATIONS, FakeTensorRt
from wetread.engines import Engine, Layered, make_engine
from wetread.engines.tensorrt import TensorRtEngine, api
from wetread.engines.tensorrt.layers import layers_of
from wetread.errors import (
    DeviceMemoryError,
    EngineError,
    EngineUnavailableError,
    GateError,
    GraphError,
    NotFiniteError,
    UnsupportedOperatorError,
)
from wetread.graph import Graph
from wetread.package import Package, ShapeProfile

SIZE = (8, 8, 8)
PROFILE = ShapeProfile(min=(8, 8, 8), opt=(16, 16, 8), max=(32, 16, 16))


@dataclass
class Machine:
    """A machine with a fake GPU."""

    cuda: FakeCuda
    trt: FakeTensorRt

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Machine:
        runtime = self.cuda.module()
        bindings = ModuleType("cuda.bindings")
        bindings.runtime = runtime
        for name, module in {
            "tensorrt": self.trt.module(), "cuda": ModuleType("cuda"), "cuda.bindings": bindings,
            "cuda.bindings.runtime": runtime,
        }.items():  # fmt: skip
            module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)
        return self

    def called(self, name: str) -> list[tuple]:
        return [call[1:] for call in self.trt.calls if call[0] == name]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    cuda = FakeCuda()
    return Machine(cuda, FakeTensorRt(cuda)).install(monkeypatch)


Install = Callable[..., Machine]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    def make(version: str = "11.4.0.106", **options: int) -> Machine:
        cuda = FakeCuda(**options)
        return Machine(cuda, FakeTensorRt(cuda, version)).install(monkeypatch)

    return make


class TestTensorRt(EngineContract):
    @pytest.fixture(autouse=True)
    def _machine(self, machine: Machine) -> None:
        self.machine = machine

    def make(self, model: onnx.ModelProto) -> Engine:
        return make_engine(Graph(model), "tensorrt")

    def test_nothing_is_left_behind(self, engine: Engine) -> None:
        with engine.context(WINDOW, 3) as a, engine.context(WINDOW) as b:
            run(engine, a, images(3))
            run(engine, b, images(1))
            assert len(self.machine.cuda.streams) == 2
        assert not self.machine.cuda.blocks
        assert not self.machine.cuda.streams
        assert not self.machine.cuda.events
        assert not self.machine.cuda.faults


def net(**options: object) -> Graph:
    return Graph(networks.unet((1, 2), (4, 8), **options))


def test_fakes_have_what_the_table_lists_and_nothing_else() -> None:
    """So that a call that the table lacks fails in these tests, before the bindings are asked."""
    cuda = FakeCuda()
    trt = FakeTensorRt(cuda).module()
    assert api.missing(trt) == []
    assert api.missing_cuda(cuda.module()) == []
    for owner, members in api.CLASSES.items():
        cls = getattr(trt, owner)
        public = {name for name in dir(cls) if not name.startswith("_")} - {"Severity"}
        assert public <= set(members), owner
        for name, arguments in members.items():
            if arguments is not None and name != "__init__":
                assert tuple(inspect.signature(getattr(cls, name)).parameters)[1:] == arguments, name
    functions = {name for name in dir(cuda) if name.startswith("cuda")}
    assert functions == set(api.CUDA)


def test_networks_are_strongly_typed_and_float32_is_float32(machine: Machine) -> None:
    make_engine(net(window=SIZE, batch=1), "tensorrt").close()
    (flags,) = machine.called("create_network")[0]
    assert flags == 1 << 1  # the fake numbers STRONGLY_TYPED as 1, as TensorRT 10 does
    assert machine.called("clear") == [("TF32",)]
    assert machine.called("workspace") == [("WORKSPACE", 2**29)]  # half of the device's memory at most
    assert machine.called("profile") == []  # nothing is free


def test_profile_of_free_axes(machine: Machine) -> None:
    engine = make_engine(net(), "tensorrt", shapes=PROFILE)
    low, usual, high = (1, 1, 8, 8, 8), (1, 1, 16, 16, 8), (1, 1, 32, 16, 16)
    assert machine.called("profile") == [("image", low, usual, high)]
    for window in (PROFILE.min, PROFILE.opt, (32, 8, 16)):
        with engine.context(window) as context:
            assert np.isfinite(run(engine, context, images(1, 1, window))).all()
    with pytest.raises(
        EngineError, match=r"windows are \(8, 8, 8\) to \(32, 16, 16\), asked for \(40, 8, 8\)"
    ):
        engine.context((40, 8, 8))
    assert len(machine.called("build")) == 1


def test_without_a_profile_each_window_has_its_plan(machine: Machine) -> None:
    engine = make_engine(net(), "tensorrt")
    assert machine.called("build") == []
    for _ in range(2):
        engine.context(SIZE).close()
        engine.context((16, 8, 8)).close()
    assert len(machine.called("build")) == 2
    assert engine.bytes == 2 * net().weight_bytes


def test_bytes_are_known_before_use_and_are_what_is_taken(machine: Machine) -> None:
    engine = make_engine(net(), "tensorrt")
    context = engine.context(SIZE, 4)
    window = 8**3 * 4
    assert context.bytes == ACTIVATIONS + 1 * window + 2 * window
    _, free, total = machine.cuda.cudaMemGetInfo()
    assert total - free == context.bytes
    assert machine.called("execution context") == [("USER_MANAGED",)]
    context.close()
    engine.close()


def test_order_of_freeing(machine: Machine) -> None:
    """The execution context goes before the memory it was given, streams last."""
    engine = make_engine(net(), "tensorrt")
    context = engine.context(SIZE)
    machine.cuda.log.clear()
    engine.close()  # closes contexts that are still open
    log = machine.cuda.log
    assert log[0] == "drop execution context"
    assert log[-2:] == ["destroy event", "destroy stream"]
    assert log.count("give device") == 3
    with pytest.raises(EngineError, match="closed"):
        context.submit((images(1, 1, SIZE),), (np.zeros((1, 2, *SIZE), np.float32),))


def test_a_context_that_cannot_be_made_holds_nothing(machine: Machine) -> None:
    engine = make_engine(net(), "tensorrt")
    machine.trt.fail = {"address"}
    with pytest.raises(EngineError, match="refuses the memory"):
        engine.context(SIZE)
    assert not machine.cuda.blocks
    assert not machine.cuda.streams
    machine.trt.fail = {"context"}
    with pytest.raises(EngineError, match="no execution context"):
        engine.context(SIZE)


def test_too_little_memory(install: Install) -> None:
    machine = install(memory=ACTIVATIONS + 8**3 * 4)
    engine = make_engine(net(), "tensorrt")
    with pytest.raises(DeviceMemoryError, match=r"windows of \(8, 8, 8\)"):
        engine.context(SIZE)
    assert not machine.cuda.blocks


def test_a_running_context_refuses_another_batch(machine: Machine) -> None:
    engine = make_engine(net(), "tensorrt")
    out = np.full((1, 2, *SIZE), np.nan, np.float32)
    with engine.context(SIZE) as context:
        machine.cuda.busy = True
        ticket = context.submit((images(1, 1, SIZE),), (out,))
        assert not ticket.done()
        assert np.isnan(out).all()
        with pytest.raises(EngineError, match="still running"):
            context.submit((images(1, 1, SIZE),), (out,))
        machine.cuda.busy = False
        assert ticket.done()
        assert np.isfinite(out).all()


def test_inputs_may_change_once_submitted(machine: Machine) -> None:
    """They were copied to pinned memory: the runner may fill the next windows meanwhile."""
    engine = make_engine(net(), "tensorrt")
    x = images(2, 1, SIZE)
    with engine.context(SIZE, 2) as context:
        expected = run(engine, context, x)
        out = np.full((2, 2, *SIZE), np.nan, np.float32)
        mine = x.copy()
        ticket = context.submit((mine,), (out,))
        mine[:] = 0
        ticket.wait()
    np.testing.assert_array_equal(out, expected)


def test_a_window_that_cannot_start(machine: Machine) -> None:
    engine = make_engine(net(), "tensorrt")
    x = images(1, 1, SIZE)
    with engine.context(SIZE) as context:
        expected = run(engine, context, x)
        machine.trt.fail = {"execute"}
        with pytest.raises(DeviceMemoryError, match="enqueueV3 failed: out of memory"):
            context.submit((x,), poisoned(engine, 1, SIZE))
        machine.trt.fail = set()
        np.testing.assert_array_equal(run(engine, context, x), expected)


def test_a_device_that_fails_while_running(machine: Machine) -> None:
    engine = make_engine(net(), "tensorrt")
    with engine.context(SIZE) as context:
        ticket = context.submit((images(1, 1, SIZE),), poisoned(engine, 1, SIZE))
        machine.cuda.broken = True
        with pytest.raises(EngineError, match="cudaErrorLaunchFailure"):
            ticket.wait()
        machine.cuda.broken = False


def test_outputs_that_are_not_finite(machine: Machine) -> None:
    engine = make_engine(Graph(networks.poison()), "tensorrt")
    x = -np.ones((1, 1, *SIZE), np.float32)
    with engine.context(SIZE) as context, pytest.raises(NotFiniteError, match="512 of 512"):
        run(engine, context, x)


def test_int8_graphs_and_our_functions(machine: Machine) -> None:
    from tests.engines.test_shapes import with_function

    assert make_engine(Graph(networks.int8_chain()), "tensorrt").info.precision == "int8"
    engine = make_engine(Graph(with_function()), "tensorrt")
    with engine.context(SIZE) as context:  # the fake refuses functions
        assert np.isfinite(run(engine, context, images(1, 1, SIZE))).all()
    with pytest.raises(EngineUnavailableError, match="own types, int8, not float16"):
        make_engine(Graph(networks.int8_chain()), "tensorrt", precision="float16")


def test_refusals_of_the_builder(machine: Machine) -> None:
    model = networks.threshold(window=SIZE)
    machine.trt.fail = {"parse"}
    with pytest.raises(GraphError, match="no such tensor"):
        make_engine(Graph(model), "tensorrt")
    machine.trt.fail = {"build"}
    with pytest.raises(EngineError, match="no kernels for node a"):
        make_engine(Graph(model), "tensorrt")
    machine.trt.fail = {"profile"}
    with pytest.raises(EngineError, match="refuses the profile"):
        make_engine(net(), "tensorrt", shapes=PROFILE)
    machine.trt.fail = set()
    model.graph.node[0].op_type = "Einsum"
    model.graph.node[0].name = "the one"
    with pytest.raises(UnsupportedOperatorError, match="operators Einsum as they are used in the one"):
        make_engine(Graph(model), "tensorrt")


# ---- devices and releases -------------------------------------------------------------------------------
@pytest.mark.parametrize("device", ["cpu", "cuda:x", "cuda:1"])
def test_devices(machine: Machine, device: str) -> None:
    with pytest.raises(EngineUnavailableError, match=r"no device 'c|there is no GPU 1"):
        make_engine(net(), "tensorrt", device=device)


def test_second_device(install: Install) -> None:
    install(devices=2)
    engine = make_engine(net(window=SIZE), "tensorrt", device="cuda:1")
    assert engine.info.device == "NVIDIA Fake sm_90"
    assert engine.info.fingerprint == "tensorrt-11.4.0.106-float32-NVIDIA-Fake-sm_90"


@pytest.mark.parametrize("version", ["10.12.0.36", "9.3.0", "12.0.1"])
def test_releases_that_are_not_supported(install: Install, version: str) -> None:
    install(version)
    with pytest.raises(EngineUnavailableError, match=f"TensorRT is {version}, expected 10.13 to 11.x"):
        make_engine(net(), "tensorrt")


@pytest.mark.parametrize("version", ["10.13.3.9", "10.16.1.11", "11.0.0.114"])
def test_releases_that_are(install: Install, version: str) -> None:
    install(version)
    make_engine(net(window=SIZE), "tensorrt").close()


def test_a_release_that_lost_a_method(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fake_tensorrt.IExecutionContext, "set_device_memory")
    with pytest.raises(EngineUnavailableError, match=r"has no IExecutionContext\.set_device_memory"):
        make_engine(net(), "tensorrt")


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineUnavailableError, match=r"tensorrt.*pip install 'wetread\[tensorrt\]'"):
        make_engine(net(), "tensorrt")


# ---- plans ----------------------------------------------------------------------------------------------
@pytest.fixture
def package(ball_package: Path, tmp_path: Path) -> Package:
    """A copy, in which plans may be left."""
    import shutil

    target = tmp_path / "balls" / ball_package.name
    shutil.copytree(ball_package, target)
    return Package.open(target)


def engine_of(package: Package) -> TensorRtEngine:
    engine = make_engine(package, "tensorrt")
    assert isinstance(engine, TensorRtEngine)
    return engine


def codes(engine: TensorRtEngine) -> list[str]:
    return [notice.code for notice in engine.notices]


def test_plans_are_kept_beside_what_they_were_made_of(package: Package, machine: Machine) -> None:
    first = engine_of(package)
    assert codes(first) == ["PLAN_BUILT"]
    folder = package.path / "engines" / first.info.fingerprint
    (plan,) = folder.glob("*.plan")
    assert first.plans == (plan.name,)
    record = json.loads((folder / (plan.name + ".json")).read_text())
    assert record["tensorrt"] == "11.4.0.106"
    assert (record["gpu"], record["compute_capability"]) == ("NVIDIA Fake", "9.0")
    assert record["package"] == package.hash
    assert record["options"] == {"workspace_bytes": 2**29, "tf32": False, "strongly_typed": True}
    assert record["shapes"]["opt"] == list(package.recipe.tiling.window)
    second = engine_of(package)
    assert codes(second) == []
    assert second.plans == first.plans
    assert len(machine.called("build")) == 1
    assert Package.open(package.path).hash == package.hash  # outside the hash


def test_timings_are_used_again(package: Package, machine: Machine) -> None:
    engine = engine_of(package)
    engine.context((8, 8, 8)).close()
    assert machine.called("timings") == [(b"", True), (b"11.4.0.106 timings", True)]
    folder = package.path / "engines" / engine.info.fingerprint
    (folder / "timing.cache").write_bytes(b"10.16 timings")
    engine.context((16, 8, 8)).close()
    assert machine.called("timings")[2:] == [(b"10.16 timings", False), (b"", True)]


def damage(package: Package, change: Callable[[dict], None]) -> Path:
    (record,) = (package.path / "engines").glob("*/*.plan.json")
    data = json.loads(record.read_text())
    change(data)
    record.write_text(json.dumps(data))
    return record


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("tensorrt", "10.16.1.11", "the plan is for tensorrt 10.16.1.11, this is 11.4.0.106"),
        ("gpu", "NVIDIA Other", "the plan is for gpu NVIDIA Other, this is NVIDIA Fake"),
        ("compute_capability", "8.6", "compute_capability 8.6, this is 9.0"),
        ("network", "0" * 64, "the plan is for network 0000"),
        ("package", "f" * 64, "the plan is for package ffff"),
        ("plan", "1" * 64, "its record says 1111"),
        ("format", 7, "cannot be read"),
    ],
)
def test_plans_for_something_else_are_refused_and_built_anew(
    package: Package, machine: Machine, field: str, value: object, text: str
) -> None:
    engine_of(package).close()
    damage(package, lambda data: data.update({field: value}))
    engine = engine_of(package)
    assert codes(engine) == ["PLAN_REFUSED", "PLAN_BUILT"]
    assert text in engine.notices[0].text
    assert len(machine.called("build")) == 2
    assert codes(engine_of(package)) == []  # the new plan counts


def test_damaged_plans(package: Package, machine: Machine) -> None:
    engine_of(package).close()
    (plan,) = (package.path / "engines").glob("*/*.plan")
    content = plan.read_bytes()
    for fault in (
        lambda: plan.write_bytes(content[:100]),
        plan.unlink,
        plan.with_name(plan.name + ".json").unlink,
    ):
        fault()
        assert codes(engine_of(package)) == ["PLAN_REFUSED", "PLAN_BUILT"]


def test_a_plan_that_tensorrt_refuses(package: Package, machine: Machine) -> None:
    """Its record may lie: TensorRT has the last word, and its reason is told."""
    engine_of(package).close()
    record = damage(package, lambda data: None)
    plan = record.with_suffix("")
    plan.write_bytes(plan.read_bytes().replace(b"11.4.0.106", b"11.3.0.106", 1))
    from wetread.package import bytes_sha256

    damage(package, lambda data: data.update(plan=bytes_sha256(plan.read_bytes())))
    engine = engine_of(package)
    assert codes(engine) == ["PLAN_REFUSED", "PLAN_BUILT"]
    assert "not compatible with this version" in engine.notices[0].text


def test_another_plan_than_the_gated_one_does_not_load(package: Package, machine: Machine) -> None:
    """The gate of a device speaks of one plan; a rebuilt one has to be gated again."""
    from wetread.package import GateRecord

    engine = engine_of(package)
    record = GateRecord(backend="tensorrt", precision="float32", status="passed", cases=3)
    package = package.with_device_gate(engine.info.fingerprint, record, {}, engine.plans)
    engine_of(package).close()
    (plan,) = (package.path / "engines").glob("*/*.plan")
    plan.write_bytes(plan.read_bytes() + b" ")
    damage(package, lambda data: data.update(gpu="another"))
    with pytest.raises(GateError, match="another plan"):
        plan_rebuilt_differently(machine, package)


def test_a_gate_that_was_run_without_the_plan_does_not_count(package: Package, machine: Machine) -> None:
    """`wetread build` judges a package in a temporary folder, whose plan is not the one that is built here."""
    from wetread.package import GateRecord

    engine = engine_of(package)
    record = GateRecord(backend="tensorrt", precision="float32", status="passed", cases=3)
    package = package.with_device_gate(engine.info.fingerprint, record, {})
    with pytest.raises(GateError, match=r"run without the plan .*\.plan"):
        engine_of(package)
    overridden = make_engine(package, "tensorrt", override_gate=True)
    verdict = package.check_gate("tensorrt", "float32", True, overridden.info.fingerprint, overridden.plans)
    assert verdict.status == "overridden"


def plan_rebuilt_differently(machine: Machine, package: Package) -> None:
    build = fake_tensorrt._Builder.build_serialized_network

    def other(self, network, config):
        return memoryview(bytes(build(self, network, config)).replace(b"{", b'{"again": 1, ', 1))

    fake_tensorrt._Builder.build_serialized_network = other
    try:
        engine_of(package)
    finally:
        fake_tensorrt._Builder.build_serialized_network = build


def test_a_read_only_package_keeps_its_plan_elsewhere(
    package: Package, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WETREAD_CACHE", str(tmp_path / "cache"))
    (package.path / "engines").write_text("not a folder")
    engine_of(package).close()
    assert codes(engine_of(package)) == []
    assert len(list((tmp_path / "cache").rglob("*.plan"))) == 1


def test_a_study_is_read_and_the_reading_says_what_was_built(
    package: Package, machine: Machine, ball_study: Path
) -> None:
    from wetread.reading import ReadOptions, read

    first = read(ball_study, package.path, options=ReadOptions(engine="tensorrt", threads=1))
    again = read(ball_study, package.path, options=ReadOptions(engine="tensorrt", threads=1))
    other = read(ball_study, package.path, options=ReadOptions(engine="openvino", threads=1))
    assert "PLAN_BUILT" in {notice.code for notice in first.notices}
    assert "PLAN_BUILT" not in {notice.code for notice in again.notices}
    np.testing.assert_array_equal(first.mask, other.mask)
    assert len(first.findings) == 2
    assert not machine.cuda.blocks


# ---- what is executed -----------------------------------------------------------------------------------
def test_layers(machine: Machine) -> None:
    engine = make_engine(net(), "tensorrt")
    assert isinstance(engine, Layered)
    with pytest.raises(EngineError, match="give a shape"):
        engine.layers()
    first, second, third = engine.layers(SIZE)
    assert (first.precision, first.kernel, first.nodes) == ("int8", "sm80_i8", ("conv_1", "relu_2"))
    assert (second.type, second.precision) == ("Reformat", "float16")
    assert third.name == "named only"
    assert engine.layers() == (first, second, third)
    assert layers_of("") == ()
