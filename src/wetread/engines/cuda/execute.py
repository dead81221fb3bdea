"""Runs a program step by step without plan, arena or graph: for tests, the tuner's oracle, and lowering's checks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from wetread.engines.cuda.operations import Arrays, operation
from wetread.engines.cuda.program import Program, Step


def allocate(
    program: Program, device: torch.device | str = "cpu", poison: bool = True
) -> dict[str, torch.Tensor]:
    """A tensor for each of the program's, each storage of its own; weights on the device as well.

    Args:
        program: the lowered network.
        device: where.
        poison: fills floating storages with NaN, so that what is read before it is written shows.
    """
    found: dict[str, torch.Tensor] = {name: w.to(device) for name, w in program.weights.items()}
    for name, spec in program.tensors.items():
        if not spec.base:
            flat = torch.zeros(spec.elements, dtype=spec.torch_dtype, device=device)
            if poison and not spec.zeroed and flat.is_floating_point():
                flat.fill_(float("nan"))
            found[name] = spec.view(flat)
    for name, spec in program.tensors.items():
        if spec.base:
            base = found[program.base(name)]
            flat = torch.as_strided(base, (program.tensors[program.base(name)].elements,), (1,))
            found[name] = spec.view(flat.view(spec.torch_dtype))
    return found


def arrays_of(step: Step, tensors: Mapping[str, torch.Tensor]) -> Arrays:
    """The step's tensors by role."""
    return Arrays(
        {role: tensors[name] for role, name in step.inputs.items()},
        {role: tensors[name] for role, name in step.outputs.items()},
    )


def run_reference(
    program: Program, inputs: Mapping[str, torch.Tensor], device: torch.device | str = "cpu",
    keep: bool = False,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Each step by its `reference`.

    Args:
        program: the lowered network.
        inputs: by name, of the shapes of the program.
        device: where.
        keep: returns every tensor of the program (all at once in memory), else its outputs alone.
    """
    tensors = allocate(program, device)
    for name in program.inputs:
        tensors[name].copy_(inputs[name])
    with torch.no_grad():
        for step in program.steps:
            operation(step.op).reference(step, arrays_of(step, tensors))
    return tensors if keep else {name: tensors[name] for name in program.outputs}
