"""The tuner on a GPU: real clock, real workers, real kernels. Runs where WETREAD_TEST_DEVICE is cuda."""

from __future__ import annotations

import os
import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests import networks  # noqa: E402
from tests.engines.cuda import programs  # noqa: E402
from wetread.engines.cuda.cache import TimingCache, stamp  # noqa: E402
from wetread.engines.cuda.execute import run_reference  # noqa: E402
from wetread.engines.cuda.lower import lower  # noqa: E402
from wetread.engines.cuda.operations import Packs  # noqa: E402
from wetread.engines.cuda.plan import Plan, library_settings  # noqa: E402
from wetread.engines.cuda.tuner import GraphClock, Options, step_table, table_text, target, tune  # noqa: E402
from wetread.graph import Graph  # noqa: E402

DEVICE = os.environ.get("WETREAD_TEST_DEVICE", "cpu")
pytestmark = [pytest.mark.peer, pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")]


def lowered(tmp_path, batch=1):
    path = networks.save(networks.unet(features=(32, 64, 64), window=(32, 32, 32)), tmp_path / "net.onnx")
    return lower(Graph.load(path), (32, 32, 32), batch, "float16")


def run(plan, inputs):
    arena = plan.arena("cuda")
    arena[plan.placement.once[1] :].fill_(255)
    tensors = plan.tensors(arena, {name: w.cuda() for name, w in plan.program.weights.items()})
    with library_settings(plan.program.precision):
        launches = plan.launchers(tensors, arena, Packs())
        plan.zero(arena)
        for name, value in inputs.items():
            tensors[name].copy_(value)
        for launch in launches:
            launch()
    torch.cuda.synchronize()
    return {name: tensors[name].clone() for name in plan.program.outputs}


def test_clock():
    clock, a = GraphClock(), torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    out, small = torch.empty_like(a), a[:256, :256].contiguous()
    large_us = clock.time_us(lambda: torch.matmul(a, a, out=out))
    small_us = clock.time_us(lambda: torch.add(small, small, out=small))
    assert 100 < large_us < 5000  # 137 GFLOP
    assert 0.2 < small_us < 20 < large_us
    assert clock.time_us(lambda: torch.matmul(a, a, out=out), limit_us=1.0) > 2.0  # given up early


def test_tuned_network_gives_what_its_reference_gives(tmp_path):
    program = lowered(tmp_path)
    lines = []
    started = time.monotonic()
    options = Options(cache=TimingCache(tmp_path / "t.json", stamp()), log=lines.append, processes=4)
    tuned = tune(program, target(), options)
    print("\n".join(lines))
    print(f"tuned in {time.monotonic() - started:.0f} s")
    Plan.make(tuned).save(tmp_path, "p")
    plan = Plan.load(tmp_path, "p")
    inputs = programs.random_inputs(program)
    found, wanted = run(plan, inputs), run_reference(program, inputs, "cuda")
    for name in program.outputs:
        a, b = found[name].float(), wanted[name].float()
        assert float((a - b).norm() / b.norm()) < 1e-2  # ten layers of float16
    rows = step_table(plan)
    print(table_text(rows))
    assert len(rows) == len(program.steps) and all(row.us > 0 for row in rows)
    started = time.monotonic()
    again = tune(program, target(), Options(cache=TimingCache(tmp_path / "t.json", stamp()), processes=0))
    assert [step.kernel for step in again.steps] == [step.kernel for step in tuned.steps]
    assert time.monotonic() - started < 20
