"""What passes need to change a program: who writes and reads a tensor, steps replaced, names, what nothing reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from wetread.engines.cuda.operations.base import slope_of
from wetread.engines.cuda.operations.site import kernel_activation
from wetread.engines.cuda.program import Json, Program, Step

EIGHT = ("int8", "uint8", "float8_e4m3fn")
FLOATS = ("float16", "bfloat16", "float32", "float64")
_ACTIVATIONS = frozenset(
    {"relu", "leaky", "elu", "sigmoid", "tanh", "silu", "mish", "gelu", "clip", "hard_sigmoid", "hard_swish"}
)


class Uses:
    """Who writes and who reads each storage of a program; made anew after each change.

    Attributes:
        position: index of each step, by name.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.position = {step.name: i for i, step in enumerate(program.steps)}
        self._writers: dict[str, list[Step]] = defaultdict(list)
        self._readers: dict[str, list[tuple[Step, str]]] = defaultdict(list)
        for step in program.steps:
            for name in step.outputs.values():
                self._writers[program.base(name)].append(step)
            for role, name in step.inputs.items():
                if name in program.tensors:
                    self._readers[program.base(name)].append((step, role))

    def maker(self, name: str) -> Step | None:
        """The one step that writes a tensor, which is a storage of its own; None for inputs, weights and views."""
        spec = self._program.tensors.get(name)
        if spec is None or spec.base or name in self._program.inputs:
            return None
        writers = self._writers[name]
        return writers[0] if len(writers) == 1 and name in writers[0].outputs.values() else None

    def readers(self, name: str) -> list[tuple[Step, str]]:
        """Steps that read a tensor's storage, by whatever view, and their roles."""
        return self._readers[self._program.base(name)]

    def is_output(self, name: str) -> bool:
        """Whether the network returns the storage."""
        base = self._program.base(name)
        return any(self._program.base(each) == base for each in self._program.outputs)

    def sole_reader(self, name: str) -> tuple[Step, str] | None:
        """The one step and role that reads a tensor, under this very name; None also for the network's outputs."""
        if name not in self._program.tensors or self.is_output(name):
            return None
        readers = self.readers(name)
        if len(readers) != 1 or readers[0][0].inputs[readers[0][1]] != name:
            return None
        return readers[0]

    def only(self, name: str, step: Step) -> bool:
        """Whether a step is the tensor's one reader."""
        found = self.sole_reader(name)
        return found is not None and found[0].name == step.name


Rule: TypeAlias = Callable[[Program, Uses, Step], bool]
"""Looks at one step; changes the program and says True, or leaves it and says False."""


def repeat(program: Program, rule: Rule) -> None:
    """Applies a rule at every step until it finds nothing more."""
    done: set[str] = set()
    while True:
        uses = Uses(program)
        for step in program.steps:
            if step.name not in done and rule(program, uses, step):
                done.clear()
                break
            done.add(step.name)
        else:
            return


def merged(
    into: Step, other: Step, *, inputs: Mapping[str, str] | None = None, outputs: Mapping[str, str] | None = None,
    **attributes: Json,
) -> Step:  # fmt: skip
    """A step that computes what two did: inputs and outputs of the first changed, attributes set."""
    return replace(
        into,
        inputs=dict(into.inputs if inputs is None else inputs),
        outputs=dict(into.outputs if outputs is None else outputs),
        attributes={**into.attributes, **attributes},
        nodes=tuple(dict.fromkeys((*into.nodes, *other.nodes))),
    )


def put(program: Program, new: Step, at: Step, gone: Sequence[Step] = ()) -> None:
    """Puts a step in the place of another; further ones vanish, and so do tensors that no step names any more."""
    names = {step.name for step in gone} - {at.name}
    old = [at, *gone]
    program.steps = [
        new if step.name == at.name else step for step in program.steps if step.name not in names
    ]
    touched = {n for step in old for n in (*step.inputs.values(), *step.outputs.values())}
    named = {n for step in program.steps for n in (*step.inputs.values(), *step.outputs.values())}
    named |= {*program.inputs, *program.outputs}
    bases = {spec.base for name, spec in program.tensors.items() if spec.base and name in named}
    for name in touched - named - bases:
        program.tensors.pop(name, None)
        program.weights.pop(name, None)


def drop(program: Program, step: Step) -> None:
    """Removes a step."""
    program.steps = [each for each in program.steps if each.name != step.name]


def activation_of(step: Step) -> Mapping[str, Json] | None:
    """The activation that a pointwise step of one instruction computes; None where it computes another thing."""
    code = step.attributes.get("program") if step.op == "pointwise" else None
    if not code or len(code) != 1 or len(step.inputs) != 1 or code[0][0] not in _ACTIVATIONS:
        return None
    if not _plain(step) or code[0][1] != 0:
        return None
    return {"name": code[0][0], **(code[0][2] if len(code[0]) > 2 else {})}


def is_add(step: Step) -> bool:
    """Whether a pointwise step is the sum of two tensors and nothing else."""
    code = step.attributes.get("program") if step.op == "pointwise" else None
    if not code or len(code) != 1 or len(step.inputs) != 2 or not _plain(step):
        return False
    return code[0][0] == "add" and sorted(map(str, code[0][1:])) == ["0", "1"]


def _plain(step: Step) -> bool:
    scales = step.attributes.get("scales") or ()
    return float(step.attributes.get("inverse", 1.0)) == 1.0 and all(float(s) == 1.0 for s in scales)


def sloped(activation: Mapping[str, Json] | None) -> bool:
    """Whether every own kernel takes the activation: none, ReLU, leaky ReLU."""
    return slope_of(activation) is not None


def fused(activation: Mapping[str, Json] | None) -> bool:
    """Whether the general kernels have the activation in their epilogues."""
    return kernel_activation(activation) is not None


def bare(step: Step, *, activation: bool = False) -> bool:
    """Whether a step's result leaves as it is computed: no activation (unless allowed), no softmax, not in 8 bits."""
    a = step.attributes
    if a.get("softmax") or float(a.get("inverse", 1.0)) != 1.0:
        return False
    return activation or a.get("activation") is None


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
