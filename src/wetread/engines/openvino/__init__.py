"""OpenVINO backend, the default on CPUs. The only room that imports openvino."""

from wetread.engines.openvino.engine import OpenVinoEngine
from wetread.engines.registry import Request

__all__ = ["OpenVinoEngine", "make"]


def make(request: Request) -> OpenVinoEngine:
    """Makes the engine that `wetread.engines.registry.make_engine` was asked for."""
    return OpenVinoEngine(
        request.source(),
        precision=request.precision,
        threads=request.threads,
        device=request.device or "CPU",
        shapes=request.shapes,
        where=request.where,
    )
