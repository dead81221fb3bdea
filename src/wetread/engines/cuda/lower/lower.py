"""The phases of lowering in order: trace, fuse, lay out."""

from __future__ import annotations

from collections.abc import Sequence

from wetread.engines.cuda.lower import handlers
from wetread.engines.cuda.lower.edit import rename
from wetread.engines.cuda.lower.lowering import ACTIVATIONS, HANDLERS, Lowering, Stored
from wetread.engines.cuda.lower.passes import passes
from wetread.engines.cuda.lower.quantised import unrounded_products
from wetread.engines.cuda.program import Program, TensorSpec, channels_last, row_major
from wetread.errors import EngineError
from wetread.graph import Graph
from wetread.graph.resolve import resolve


def lower(
    graph: Graph, window: Sequence[int], batch: int, precision: str, *, input_dtype: str | None = None,
    output_dtype: str | None = None,
) -> Program:  # fmt: skip
    """Lowers a network for one window and batch.

    Args:
        graph: the network, optimised or not; functions of the domain ``wetread`` are known.
        window: D, H, W.
        batch: windows at once.
        precision: ``float32``, ``tf32``, ``float16``, ``bfloat16``, ``int8`` or ``float8``. In the last two what the
            graph quantises is computed in eight bits and the rest in float16.
        input_dtype: torch's name of the type in which inputs are given; None takes that of activations.
        output_dtype: the same for outputs.

    Raises:
        EngineError: no such precision.
        GraphError: the network does not take this window.
        UnsupportedOperatorError: an operator that the engine does not know; names the node.
    """
    program, stored = trace(
        graph, window, batch, precision, input_dtype=input_dtype, output_dtype=output_dtype
    )
    for _, apply in passes(stored):
        apply(program)
    program.verify()
    return program


def trace(
    graph: Graph, window: Sequence[int], batch: int, precision: str, *, input_dtype: str | None = None,
    output_dtype: str | None = None,
) -> tuple[Program, dict[str, Stored]]:  # fmt: skip
    """The first phase alone: one primitive step for each node; see `lower`.

    Returns:
        The program, and the weights that the graph keeps in eight bits.
    """
    if precision not in ACTIVATIONS:
        raise EngineError(f"there is no precision {precision!r}", todo=f"use one of {', '.join(ACTIVATIONS)}")
    handlers.load()
    functions = [name.split(".", 1)[1] for name in HANDLERS if name.startswith("wetread.")]
    resolved = unrounded_products(resolve(graph, window, batch, functions))
    d, h, w = (int(size) for size in window)
    program = Program((d, h, w), batch, precision)
    program.inputs = tuple(entry.name for entry in graph.inputs)
    program.outputs = tuple(entry.name for entry in graph.outputs)
    low = Lowering(resolved, program, graph.where)
    for name in program.inputs:
        _input(low, name, input_dtype)
    for node in resolved.nodes:
        if not low.is_done(node):
            handler = HANDLERS.get(node.operator)
            if handler is None:
                low.fallback(node)
            else:
                handler(low, node)
    for name in program.outputs:
        _output(low, name, output_dtype)
    return program, low.stored


def _input(low: Lowering, name: str, dtype: str | None) -> None:
    shape = low.shape(name)
    given = dtype or low.dtype(name)
    low.program.tensors[name] = TensorSpec(shape, given, channels_last(shape))
    low.hold(name, name)
    if given != low.dtype(name):
        cast = low.tensor(f"{name}/cast", shape, low.dtype(name), channels_last(shape))
        low.step("copy", f"{name}/cast", {"x": name}, {"y": cast}, nodes=())
        low.hold(name, cast)


def _output(low: Lowering, name: str, dtype: str | None) -> None:
    """Makes sure that the output's own tensor holds it, row-major and with a storage of its own."""
    held = low.value(name)
    spec = low.spec(held)
    wanted = dtype or low.dtype(name)
    planes = row_major(spec.shape)
    if held == name and name not in low.program.inputs and spec.dtype == wanted and spec.strides == planes:
        return
    if name in low.program.inputs:  # the network returns what it is given
        raise EngineError("an input is returned as output", where=f"{low.where}: {name}")
    if name in low.program.tensors:
        inner, outputs = low.fresh(f"{name}/inner"), low.program.outputs
        rename(low.program, name, inner)
        held, low.program.outputs = inner if held == name else held, outputs
    low.program.tensors[name] = TensorSpec(spec.shape, wanted, planes)
    low.step("copy", f"{name}/out", {"x": held}, {"y": name}, nodes=())
