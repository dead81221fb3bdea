"""A whole volume through plans of a network for several batches."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

from models3d import MODELS, Model, UNet, export, seeded  # noqa: E402

from tests.kernels.reference import DEVICE  # noqa: E402
from wetread.engines.cuda.device import Device  # noqa: E402
from wetread.engines.cuda.lower import lower  # noqa: E402
from wetread.engines.cuda.plan import Plan  # noqa: E402
from wetread.engines.cuda.store import Store  # noqa: E402
from wetread.engines.cuda.volume import (  # noqa: E402
    EvenAxis,
    PlannedNetwork,
    VolumePlan,
    VolumeRunner,
    gaussian_profile,
)
from wetread.errors import EngineError  # noqa: E402

pytestmark = pytest.mark.peer
WINDOW = (16, 16, 16)


@pytest.fixture(scope="module")
def model():
    return Model("small", "a small U-Net", lambda: seeded(lambda: UNet((16, 16))), WINDOW, True)


@pytest.fixture(scope="module")
def graph(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("small") / "small.onnx", WINDOW)


def planned(graph, precision, batches):
    device = Device.open(DEVICE)
    plans = [Plan.make(lower(graph, WINDOW, b, precision)) for b in batches]
    return PlannedNetwork(plans, Store(device.torch), device), plans


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_volume_equals_the_module_window_by_window(model, graph, precision):
    network, _ = planned(graph, precision, (1, 2))
    axes = [EvenAxis(n, 8, gaussian_profile(16, 2, 1 / 3)) for n in (16, 24, 24)]
    volume = torch.randn(1, 16, 24, 24, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    plan = VolumePlan(axes, {1: 1.0, 2: 1.5}, DEVICE)
    values = torch.full((3, *plan.shape), float("nan"), device=DEVICE)
    with network.current(), torch.no_grad():
        runner = VolumeRunner(network)
        runner.run(volume, plan, values=values)
        runner.check()
    module = model.make().to(DEVICE)
    expected = torch.zeros_like(values, dtype=torch.float64)
    weights = [torch.from_numpy(axis.weights).double().to(DEVICE) for axis in axes]
    with torch.no_grad():
        for j, b in enumerate(axes[1].starts):
            for k, c in enumerate(axes[2].starts):
                y = module(volume[None, :, :, b : b + 16, c : c + 16])[0].double()
                w = torch.einsum("i,j,k->ijk", weights[0][0], weights[1][j], weights[2][k])
                expected[:, :, b : b + 16, c : c + 16] += y * w
    error = float((values.double() - expected).norm() / expected.norm())
    assert error < (1e-5 if precision == "float32" else 3e-3)
    network.close()
    network.close()


def test_one_arena_for_all_batches(graph):
    network, plans = planned(graph, "float32", (1, 2))
    assert network.batches == (1, 2)
    assert network.bytes >= max(plan.bytes for plan in plans)
    assert network.bytes < sum(plan.bytes for plan in plans)
    source, output = network.tensors(2)
    assert source.shape == (2, 1, *WINDOW) and output.shape == (2, 3, *WINDOW)
    network.close()


def test_plans_of_one_window_alone(graph):
    with pytest.raises(EngineError, match="one window"):
        PlannedNetwork([], Store(torch.device("cpu")), Device.open("cpu"))


def test_the_benchmarks_networks_are_there():
    assert set(MODELS) == {"mlperf", "nnunet", "swinunetr", "segresnet", "resnet50", "meshnet"}
