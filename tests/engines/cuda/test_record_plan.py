"""The record plans (docs/benchmarks/mlperf_3dunet.md): lowering still makes these steps, their kernels are offered.

A change that makes another plan of MLPerf's 3D-UNet may make it slower: measure it, then take its plans as the record.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

from models3d import MLPERF, export  # noqa: E402

from wetread.engines.cuda.lower import lower  # noqa: E402
from wetread.engines.cuda.operations import Target, operation  # noqa: E402
from wetread.precision import Ranges, TensorRange, quantise, quantised_tensors  # noqa: E402

pytestmark = pytest.mark.peer
H200 = Target((9, 0), 232448, 132)
WINDOW = (128, 128, 128)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return export(MLPERF, tmp_path_factory.mktemp("mlperf") / "mlperf.onnx")


def ranges(graph):
    """As the record run had them, roughly: norms reach 6, transposed convolutions 1.2."""
    makers = {name: node.op_type for node in graph.nodes for name in node.output}
    rng = np.random.default_rng(0)
    found = {}
    for name in quantised_tensors(graph):
        largest = 1.2 if makers.get(name) == "ConvTranspose" else 6.0
        found[name] = TensorRange()
        values = rng.standard_normal((1, 8, 16, 16, 16)).astype(np.float32)
        found[name].update(values * np.float32(largest / np.abs(values).max()))
    return Ranges(found, 1, ("made up",))


def outline(steps):
    """What decides a plan's speed: operations, in which order, what is fused into them."""
    return [
        (s["op"], s["name"], sorted(s.get("inputs", {})), sorted(s.get("outputs", {})),
         s["attributes"].get("norm") is not None, s["attributes"].get("activation"))
        for s in steps
    ]  # fmt: skip


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_the_record_is_still_what_is_made(graph, precision):
    record = json.loads((Path(__file__).parent / "record" / f"mlperf-{precision}-b8.json").read_text())
    given = graph if precision == "float16" else quantise(graph, ranges(graph))[0]
    program = lower(given, WINDOW, record["batch"], precision)
    made = [
        {"op": s.op, "name": s.name, "inputs": s.inputs, "outputs": s.outputs, "attributes": s.attributes}
        for s in program.steps
    ]
    assert outline(made) == outline(record["steps"])
    types = {name: row["dtype"] for name, row in record["tensors"].items()}
    assert {name: spec.dtype for name, spec in program.tensors.items()} == types
    for step, kept in zip(program.steps, record["steps"], strict=True):
        kernel = kept["kernel"]
        offered = [dict(kernel) for kernel in operation(step.op).kernels(step, program, H200)]
        families = {each["family"] for each in offered}
        assert kernel["family"] in families, f"{step.name}: {kernel} is no longer offered"
