"""Changes of a program that several passes need: who writes and reads a tensor, renaming, what nothing reads."""

from __future__ import annotations

from dataclasses import replace

from wetread.engines.cuda.program import Program, Step


def rename(program: Program, old: str, new: str) -> None:
    """Gives a tensor another name, wherever it stands."""

    def name(each: str) -> str:
        return new if each == old else each

    program.tensors = {
        name(key): replace(spec, base=name(spec.base)) for key, spec in program.tensors.items()
    }
    program.steps = [
        replace(
            step,
            inputs={role: name(each) for role, each in step.inputs.items()},
            outputs={role: name(each) for role, each in step.outputs.items()},
        )
        for step in program.steps
    ]
    program.inputs = tuple(name(each) for each in program.inputs)
    program.outputs = tuple(name(each) for each in program.outputs)


def remove_dead(program: Program) -> None:
    """Removes steps whose results nothing reads, then tensors and weights that no step names.

    A step stays if any storage that it writes is read later or holds an output, since several steps may write parts
    of one storage.
    """
    needed = {program.base(name) for name in program.outputs}
    kept: list[Step] = []
    for step in reversed(program.steps):
        if any(program.base(name) in needed for name in step.outputs.values()):
            kept.append(step)
            needed |= {program.base(n) for n in step.inputs.values() if n in program.tensors}
    program.steps = kept[::-1]
    named = {n for step in program.steps for n in (*step.inputs.values(), *step.outputs.values())}
    named |= {*program.inputs, *program.outputs}
    named |= {program.base(name) for name in named if name in program.tensors}
    program.tensors = {name: spec for name, spec in program.tensors.items() if name in named}
    program.weights = {name: w for name, w in program.weights.items() if name in named}
