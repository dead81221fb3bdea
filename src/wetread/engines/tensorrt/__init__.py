"""TensorRT backend. The only room that imports tensorrt and CUDA's bindings.

It has not been run on a GPU: its calls are held to the Python bindings of every release that it supports, and
its logic is tested over a fake (see ``docs/engines.md``).
"""

from wetread.engines.registry import Request
from wetread.engines.tensorrt.engine import TensorRtEngine

__all__ = ["TensorRtEngine", "make"]


def make(request: Request) -> TensorRtEngine:
    """Makes the engine that `wetread.engines.registry.make_engine` was asked for."""
    return TensorRtEngine(
        request.graph(),
        precision=request.precision,
        device=request.device or "cuda",
        shapes=request.shapes,
        package=request.package,
    )
