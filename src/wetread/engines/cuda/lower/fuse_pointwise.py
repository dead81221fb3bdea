"""Elementwise steps that read each other become one: what lies between them is never written."""

from __future__ import annotations

from wetread.engines.cuda.lower.edit import EIGHT, Uses, merged, put, repeat
from wetread.engines.cuda.program import Json, Program, Step

MOST_INPUTS = 4
"""Tensors that the kernel of pointwise chains reads at most."""

LONGEST = 24
"""Instructions of a chain; each holds a register for every element."""


def chains(program: Program) -> None:
    """A pointwise step takes in the pointwise step before it, where it is the result's only reader."""
    repeat(program, _chain)


def _chain(program: Program, uses: Uses, step: Step) -> bool:
    if step.op != "pointwise" or _scaled(step):
        return False
    for role, name in step.inputs.items():
        maker = uses.maker(name)
        if maker is None or maker.op != "pointwise" or not uses.only(name, step) or _scaled(maker):
            continue
        same = program.spec(name).shape == program.spec(step.outputs["y"]).shape
        if (
            not same
            or program.spec(name).dtype in EIGHT
            or float(maker.attributes.get("inverse", 1.0)) != 1.0
        ):
            continue
        found = joined(maker, step, int(role))
        if len(found.inputs) <= MOST_INPUTS and len(found.attributes["program"]) <= LONGEST:
            put(program, found, step, [maker])
            return True
    return False


def _scaled(step: Step) -> bool:
    return any(float(s) != 1.0 for s in step.attributes.get("scales") or ())


def joined(first: Step, second: Step, place: int) -> Step:
    """One step for two, of which the second reads the first one's result in the register `place`."""
    names: list[str] = []
    for step in (first, second):
        for role in sorted(step.inputs, key=int):
            name = step.inputs[role]
            if name not in names and not (step is second and int(role) == place):
                names.append(name)
    code: list[Json] = []

    def run(step: Step, registers: dict[int, int]) -> None:
        for number, instruction in enumerate(step.attributes["program"], len(step.inputs)):
            name, *operands = instruction
            code.append([name, *(registers[o] if isinstance(o, int) else o for o in operands)])
            registers[number] = len(names) + len(code) - 1

    run(first, {int(r): names.index(n) for r, n in first.inputs.items()})
    result = len(names) + len(code) - 1
    run(second, {int(r): result if int(r) == place else names.index(n) for r, n in second.inputs.items()})
    inputs = {str(i): name for i, name in enumerate(names)}
    return merged(second, first, inputs=inputs, program=code)
