"""ONNX Runtime backend. The only room that imports onnxruntime."""

from wetread.engines.onnxruntime.engine import OnnxRuntimeEngine
from wetread.engines.registry import Request

__all__ = ["OnnxRuntimeEngine", "make"]


def make(request: Request) -> OnnxRuntimeEngine:
    """Makes the engine that `wetread.engines.registry.make_engine` was asked for."""
    return OnnxRuntimeEngine(
        request.graph(),
        source=request.source(),
        precision=request.precision,
        threads=request.threads,
        device=request.device or "cpu",
        shapes=request.shapes,
    )
