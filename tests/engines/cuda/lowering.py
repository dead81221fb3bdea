"""What tests of lowering share: programs run after every pass, compared with the float64 evaluator."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from wetread.engines.cuda.execute import run_reference
from wetread.engines.cuda.lower.lower import trace
from wetread.engines.cuda.lower.passes import passes
from wetread.engines.cuda.program import Program
from wetread.graph import Graph


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 error."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def inputs_of(graph: Graph, window: Sequence[int], batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs, standard normal."""
    rng = np.random.default_rng(seed)
    return {e.name: rng.standard_normal((batch, int(e.shape[1] or 1), *window)) for e in graph.inputs}


def outputs_of(program: Program, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the program's references make of them, in float64."""
    given = {name: torch.from_numpy(array).float() for name, array in inputs.items()}
    found = run_reference(program, given)
    return {name: found[name].double().numpy() for name in program.outputs}


def lowered_step_by_step(
    graph: Graph, window: Sequence[int], batch: int, precision: str, tolerance: float, between: float | None = None
) -> Program:  # fmt: skip
    """Lowers a network, and runs it after every pass.

    Args:
        graph: the network.
        window: D, H, W.
        batch: windows at once.
        precision: of the program.
        tolerance: largest relative L2 error against the float64 evaluator, after each pass.
        between: the same between one pass and the next; None takes `tolerance`.

    Returns:
        The program after the last pass.
    """
    inputs = inputs_of(graph, window, batch)
    expected = graph.fixed(window, batch).evaluate(inputs)
    program, stored = trace(graph, window, batch, precision)
    program.verify()
    last = outputs_of(program, inputs)
    for name, apply in [("trace", lambda p: None), *passes(stored)]:
        before = copy.copy(program)
        before.steps, before.tensors = list(program.steps), dict(program.tensors)
        apply(program)
        program.verify()
        if (program.steps, program.tensors) == (before.steps, before.tensors) and name != "trace":
            continue
        found = outputs_of(program, inputs)
        for output, values in found.items():
            assert np.isfinite(values).all(), f"after {name}: {output} is not finite"
            assert error(values, expected[output]) < tolerance, f"after {name}: {output}"
            assert error(values, last[output]) < (between or tolerance), f"between {name} and the pass before"
        last = found
    return program


def kinds(program: Program) -> list[str]:
    """Operations of the steps in order."""
    return [step.op for step in program.steps]
