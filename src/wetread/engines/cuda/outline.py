"""What a package's network becomes on the CUDA backend, for people: from plans on disk, else by lowering alone.

Neither needs a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from wetread.engines.base import LayerRun
from wetread.engines.common import Shape3, check_window
from wetread.engines.cuda.layers import layers_of
from wetread.engines.cuda.making import PRECISIONS, Network, lowered
from wetread.engines.cuda.operations import Target, operation
from wetread.engines.cuda.plan import SUFFIX, Plan
from wetread.engines.cuda.program import Program
from wetread.errors import EngineError
from wetread.package import Package

H200 = Target((9, 0), 232_448, 132)
"""For which candidates are named where nothing was tuned."""


@dataclass(frozen=True)
class Outline:
    """A plan in words.

    Attributes:
        device: that it was tuned for; empty where it was not.
        file: of the plan; empty where there is none.
        precision, window, batch: what it is for.
        arena_bytes: what a context takes beside the weights.
        weight_bytes: as the steps name them, before kernels pack them.
        layers: the steps; `LayerRun.kernel` is the chosen kernel, or what there is to choose from.
    """

    device: str
    file: str
    precision: str
    window: Shape3
    batch: int
    arena_bytes: int
    weight_bytes: int
    layers: tuple[LayerRun, ...]


def outlines(package: Package, network: Network, precision: str | None = None) -> list[Outline]:
    """Of the network's plans on disk, or, where there is none, of what it is lowered to.

    Args:
        package: where plans lie, and whose window and batch are taken.
        network: one of its networks.
        precision: None takes any plan's, or the graph's own.

    Raises:
        EngineError: the package fixes no window, a plan is damaged.
        GraphError, UnsupportedOperatorError: it cannot be lowered; names the node.
    """
    found = [
        _outline(Plan.load(path.parent, path.name.removesuffix(SUFFIX)), path)
        for path in _plans(package, network)
    ]
    found = [each for each in found if precision in (None, each.precision)]
    if found:
        return found
    shapes = package.manifest.shapes
    window = package.recipe.tiling.window or package.recipe.fixed_shape or (shapes.opt if shapes else None)
    if window is None:
        raise EngineError(
            "the network's window is free",
            where=str(package.path),
            todo="read a case first: its plan is shown afterwards",
        )
    batch = package.recipe.tiling.batch if all(i.shape[0] is None for i in network.inputs) else 1
    own = PRECISIONS.get(network.precision, (network.precision,))[0]
    shape = check_window(window, network.inputs, batch)
    made = _outline(Plan.make(lowered(network, shape, batch, precision or own)), None)
    return [made]


def _plans(package: Package, network: Network) -> list[Path]:
    return [
        path
        for folder in package.engine_folders
        for path in sorted(folder.glob(f"cuda-*/{network.sha256[:16]}-*{SUFFIX}"))
    ]


def _outline(plan: Plan, path: Path | None) -> Outline:
    program = plan.program
    device = str(plan.provenance.get("device", ""))
    return Outline(
        device=device,
        file="" if path is None else str(path),
        precision=program.precision,
        window=program.window,
        batch=program.batch,
        arena_bytes=plan.bytes,
        weight_bytes=sum(w.numel() * w.element_size() for w in program.weights.values()),
        layers=layers_of(program) if device else _choices(program),
    )


def _choices(program: Program) -> tuple[LayerRun, ...]:
    """The steps with the family of the kernel that an H200 would try first, and how many kernels there are."""
    layers = []
    for step, layer in zip(program.steps, layers_of(program), strict=True):
        kernels = operation(step.op).kernels(step, program, H200)
        count, family = len(kernels), str(kernels[0].get("family", "own")) if kernels else layer.kernel
        layers.append(replace(layer, kernel=f"{family}, first of {count}" if count > 1 else family))
    return tuple(layers)
