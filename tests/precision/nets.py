"""What tests of this room share: windows, and how far two networks' outputs differ."""

import numpy as np

from tests.networks import Builder
from wetread.engines.registry import make_engine
from wetread.graph import Graph
from wetread.precision import CalibrationWindow, observe

FREE = (None, None, None)


def windows(count=2, shape=(1, 16, 16, 16), seed=0):
    rng = np.random.default_rng(seed)
    return [
        CalibrationWindow(f"case-{i}", rng.standard_normal(shape).astype(np.float32)) for i in range(count)
    ]


def graph_of(b: Builder, out: str, into: int, channels: int, opset: int = 18) -> Graph:
    return Graph(b.model({"image": (1, into, *FREE)}, {"out": (out, (1, channels, *FREE))}, opset))


def ranges_of(graph, shape=(1, 16, 16, 16), count=2):
    return observe(graph, windows(count, shape), threads=1)


def openvino(graph, array):
    """The first output for one window (channels, *window), by OpenVINO as wetread runs it."""
    engine = make_engine(graph, "openvino", threads=1)
    shape = array.shape[1:]
    with engine.context(shape) as context:
        out = np.empty((1, *engine.output_shape(shape)), np.float32)
        context.submit((np.ascontiguousarray(array[None]),), (out,)).wait()
    engine.close()
    return out


def onnxruntime(graph, array):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph.to_bytes(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {graph.inputs[0].name: array[None]})[0]


def error(found, expected):
    """Relative error in the mean square."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
