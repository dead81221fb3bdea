"""Engines on NVIDIA's GPUs by our own fused kernels: a graph is lowered to a plan of steps in one arena.

program, lower/     a network as fused steps on strided tensors, and how a graph becomes one
operations/         what each step computes, and the kernels that may run it
tuner, cache        kernels timed on the device; the fastest correct one is kept
plan, arena         kernels chosen, memory placed; how that lies on disk
store, executable   weights once for an engine; a plan prepared in an arena and captured as a graph
making              lowered, tuned, placed
engine, context     behind the seam of `wetread.engines.base`
volume              a whole volume through a plan without leaving the device
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from wetread.engines.common import tensor_infos
from wetread.engines.registry import Request

if TYPE_CHECKING:
    from wetread.engines.cuda.engine import CudaEngine
    from wetread.engines.cuda.making import Network
    from wetread.engines.cuda.outline import Outline

__all__ = ["make", "network_of", "outlines"]


def make(request: Request) -> CudaEngine:
    """Makes the engine that `wetread.engines.registry.make_engine` was asked for.

    Where no device is named, ``WETREAD_CUDA_DEVICE`` names one: ``cuda:1``, or ``cpu`` to debug without a GPU.
    """
    from wetread.engines.cuda.engine import CudaEngine

    return CudaEngine(
        network_of(request),
        precision=request.precision,
        device=request.device or os.environ.get("WETREAD_CUDA_DEVICE") or "cuda",
        shapes=request.shapes,
        package=request.package,
    )


def outlines(request: Request) -> list[Outline]:
    """What the package's network is on this backend, step by step: from its plans, else by lowering.

    Raises:
        EngineError: the window is free; see `wetread.engines.cuda.outline.outlines`.
    """
    from wetread.engines.cuda.outline import outlines as found

    assert request.package is not None
    return found(request.package, network_of(request), request.precision)


def network_of(request: Request) -> Network:
    """What is known of the network: from the package's manifest where there is one, without onnx, else by loading.

    Raises:
        GraphError: the file cannot be read.
    """
    from wetread.engines.cuda.making import Network

    if request.package is not None and isinstance(request.network, Path):
        for number, entry in enumerate(request.package.models):
            if request.package.model_path(number) == request.network:
                return Network(
                    tensor_infos(entry.inputs), tensor_infos(entry.outputs), entry.precision, entry.sha256,
                    entry.bytes, request.where, request.graph,
                )  # fmt: skip
    from wetread.package import bytes_sha256

    graph = request.graph()
    return Network(
        tensor_infos(graph.inputs), tensor_infos(graph.outputs), graph.precision, bytes_sha256(graph.to_bytes()),
        graph.weight_bytes, request.where, lambda: graph,
    )  # fmt: skip
