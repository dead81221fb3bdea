"""The TensorRT backend's logic, over a TensorRT and a CUDA that run in the processor's memory.

What the fakes have is what `api` lists, and `test_tensorrt_bindings` holds that list to NVIDIA's own bindings. No
number here says anything about a GPU.
"""

from __future__ import annotations

import inspect
import sys

import numpy as np
import onnx
import pytest

from tests import networks
from tests.engines import fake_tensorrt
from tests.engines.contract import WINDOW, EngineContract, images, poisoned, run
from tests.engines.fake_cuda import FakeCuda
from tests.engines.fake_tensorrt import ACTIVATIONS, FakeTensorRt
from tests.engines.machine import Install, Machine
from wetread.engines import Engine, Layered, make_engine
from wetread.engines.tensorrt import api
from wetread.engines.tensorrt.layers import layers_of
from wetread.errors import (
    DeviceMemoryError,
    EngineError,
    EngineUnavailableError,
    GraphError,
    NotFiniteError,
    UnsupportedOperatorError,
)
from wetread.graph import Graph
from wetread.package import ShapeProfile

SIZE = (8, 8, 8)
PROFILE = ShapeProfile(min=(8, 8, 8), opt=(16, 16, 8), max=(32, 16, 16))


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
