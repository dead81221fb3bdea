"""How a plan is made: a network lowered for one shape of windows, its kernels chosen on the device, memory placed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wetread.engines.base import TensorInfo
from wetread.engines.common import Shape3, window_refused
from wetread.engines.cuda.cache import TimingCache, stamp
from wetread.engines.cuda.device import Device
from wetread.engines.cuda.executable import CAPTURE
from wetread.engines.cuda.layers import layers_of
from wetread.engines.cuda.plan import Plan
from wetread.engines.cuda.program import Program
from wetread.engines.cuda.tuner import Options, tune
from wetread.errors import EngineUnavailableError, GraphError, UnsupportedOperatorError

if TYPE_CHECKING:
    from wetread.graph import Graph

LOG = logging.getLogger("wetread.cuda")

PRECISIONS = {
    "float32": ("float32", "tf32", "float16", "bfloat16"),
    "float16": ("float16",),
    "bfloat16": ("bfloat16",),
    "int8": ("int8",),
    "float8": ("float8",),
}
"""What a graph of each precision may be run in, its own first."""


class Network:
    """What an engine needs to know of a network; the graph itself is only loaded to be lowered.

    Args:
        inputs, outputs: its tensors.
        precision: by the types in the graph.
        sha256: of its bytes.
        bytes: of its weights, or of its file.
        where: its name in messages.
        load: gives the graph; imports onnx.
    """

    def __init__(
        self,
        inputs: tuple[TensorInfo, ...],
        outputs: tuple[TensorInfo, ...],
        precision: str,
        sha256: str,
        size: int,
        where: str,
        load: Callable[[], Graph],
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.precision, self.sha256, self.bytes = precision, sha256, max(1, size)
        self.where, self.load = where, load


def make_plan(
    network: Network,
    shape: Shape3,
    batch: int,
    precision: str,
    device: Device,
    *,
    cache: Path | None = None,
    quick: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Plan:
    """Lowers a network for windows of one shape, chooses its kernels on the device, and places it.

    Args:
        network: what is lowered.
        shape: D, H, W of a window.
        batch: windows at once.
        precision: what it computes in.
        device: where kernels are timed; on the processor there is nothing to choose.
        cache: file of measured times; None keeps none.
        quick: where similar steps were timed before (another window, driver or version), only the best of theirs
            are timed.
        provenance: goes into the plan.

    Raises:
        EngineError: the network does not take that shape.
        GraphError, UnsupportedOperatorError: it cannot be lowered; names the node.
    """
    program = lowered(network, shape, batch, precision)
    if device.gpu:
        known = TimingCache(cache, stamp(device.torch))
        options = Options(cache=known, quick=quick, log=LOG.info)
        with CAPTURE, device.guard.watch("the plan could not be tuned"), torch.cuda.device(device.torch):
            program = tune(program, device.target, options, device.torch)
    return Plan.make(program, provenance)


def lowered(network: Network, shape: Shape3, batch: int, precision: str) -> Program:
    """Lowers a network; loads its graph.

    Raises:
        EngineError, GraphError, UnsupportedOperatorError: see `make_plan`.
    """
    from wetread.engines.cuda.lower import lower

    graph = network.load()
    try:
        return lower(graph, shape, batch, precision)
    except UnsupportedOperatorError:
        raise
    except GraphError as error:
        raise window_refused(shape, error) from error


def chosen(asked: str | None, network: Network, device: Device) -> str:
    """The precision that is asked for, where graph and device have it."""
    known = PRECISIONS.get(network.precision, (network.precision,))
    precision = asked or known[0]
    if precision not in known:
        raise EngineUnavailableError(
            f"a {network.precision} network runs on the cuda backend in {' or '.join(known)}, not in {precision}",
            todo="build a package in that precision",
        )
    least = {"bfloat16": (8, 0), "tf32": (8, 0), "float8": (8, 9)}.get(precision, (0, 0))
    if device.gpu and device.target.capability < least:
        raise EngineUnavailableError(
            f"{device.name} has no {precision} units", todo="use float16, or a GPU that has them"
        )
    return precision


def described(plan: Plan) -> str:
    """A plan in one line: steps, which kernels, and its memory."""
    layers = layers_of(plan.program)
    torch_steps = sum(layer.kernel == "torch" for layer in layers)
    library = sum(layer.kernel == "library" for layer in layers)
    return (
        f"{len(layers)} steps, {len(layers) - library - torch_steps} by own kernels, {library} by libraries, "
        f"{torch_steps} by torch; arena {plan.bytes / 2**20:.1f} MiB"
    )
