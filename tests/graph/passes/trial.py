"""A network before and after passes, compared in float64 by us and in float32 by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime

from wetread.graph import Graph, verify
from wetread.graph.passes import GraphReport, Pass, optimise
from wetread.graph.passes.lift import LiftPass


def inputs_of(graph: Graph, size: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        e.name: rng.standard_normal(
            [(1 if i == 0 else size) if s is None else s for i, s in enumerate(e.shape)]
        )
        for e in graph.inputs
    }


def run_peer(graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.to_bytes(), options, ["CPUExecutionProvider"])
    found = session.run(None, {name: array.astype(np.float32) for name, array in inputs.items()})
    return dict(zip([e.name for e in graph.outputs], found, strict=True))


def apply(
    model: onnx.ModelProto, passes: Sequence[Pass], *, peer: bool = True, tolerance: float = 1e-6
) -> tuple[Graph, GraphReport]:
    """Runs the passes (constants lifted first) and compares all outputs, relative to their largest magnitude."""
    before = Graph(model)
    window = (8, 8, 8) if len(before.inputs[0].shape) == 5 else None
    after, report = optimise(before, window=window, passes=(LiftPass(), *passes))
    verify(after)
    x = inputs_of(before)
    expected, found = before.evaluate(x), after.evaluate(x)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * np.abs(array).max())
    if peer:
        ran = run_peer(after.inlined(), x)
        for name, array in run_peer(before, x).items():  # float32 in another order
            np.testing.assert_allclose(ran[name], array, rtol=0, atol=2e-5 * np.abs(array).max())
    names = [node.name for node in after.nodes]
    assert len(set(names)) == len(names)
    assert all(names)
    return after, report
