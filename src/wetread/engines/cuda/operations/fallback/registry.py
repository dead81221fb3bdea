"""What an ONNX operator is to the torch step: a function of tensors, and the inputs that must be constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

import torch

from wetread.engines.cuda.operations.base import Packs
from wetread.errors import UnsupportedOperatorError

Tensor: TypeAlias = torch.Tensor
Given: TypeAlias = "Tensor | None"
Result: TypeAlias = "Tensor | tuple[Tensor | None, ...]"
Types = Literal["moves", "own", "wide"]
"""How values are held while an operator runs.

moves: it only moves elements; they stay what they are, bit by bit
own: half types are accurate enough where the device computes in them
wide: half types are computed in float32, since the operator adds many values or squares them
"""


@dataclass(frozen=True)
class Call:
    """One use of an operator.

    Attributes:
        operator: its name.
        attributes: as in ONNX, plain data; tensors as nested lists under ``value``.
        opset: version of the standard operators.
        known: values of the inputs that the operator must know before it runs, by their number, flat.
        outputs: type of each output, None for those that nobody reads.
        device: where it runs.
        packs: what is made once for an engine.
        unsigned: inputs are uint64, held as int64 of the same bits.
    """

    operator: str
    attributes: Mapping[str, Any]
    opset: int
    known: Mapping[int, Sequence[Any]] = field(default_factory=dict)
    outputs: tuple[torch.dtype | None, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    packs: Packs = field(default_factory=Packs)
    unsigned: bool = False

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or what ONNX takes where it is not given."""
        found = self.attributes.get(name)
        return default if found is None else found

    def ints(self, number: int, attribute: str = "") -> list[int] | None:
        """Known integers of an input, or of the attribute that held them in older operator sets."""
        if number in self.known:
            return [int(v) for v in self.known[number]]
        found = self.attributes.get(attribute) if attribute else None
        return None if found is None else [int(v) for v in found]

    def need(self, number: int, attribute: str = "") -> list[int]:
        """As `ints`, where ONNX requires them.

        Raises:
            UnsupportedOperatorError: they hang on the network's input.
        """
        found = self.ints(number, attribute)
        if found is None:
            raise self.refused(f"its input {number} is not a constant")
        return found

    def dtype(self, number: int = 0) -> torch.dtype:
        """Type of an output that is read."""
        found = self.outputs[number]
        if found is None:
            raise self.refused(f"output {number} has no type")
        return found

    def wants(self, number: int) -> bool:
        """Whether anything reads an output."""
        return number < len(self.outputs) and self.outputs[number] is not None

    def refused(self, why: str) -> UnsupportedOperatorError:
        """The error for a use that cannot be run."""
        return UnsupportedOperatorError(
            f"{self.operator} cannot be run by the cuda engine: {why}",
            todo="run the network on another backend, such as onnxruntime",
        )


Function: TypeAlias = "Callable[..., Result]"
F = TypeVar("F", bound=Function)


@dataclass(frozen=True)
class Operator:
    """An ONNX operator that torch runs.

    Attributes:
        name: in ONNX's standard domain.
        run: takes a `Call`, then a tensor or None for each input that is not known.
        known: numbers of the inputs whose values must be constants of the network.
        types: see `Types`.
        note: what of it is not run, for the list of operators.
        named: node tests of ONNX that it does not pass, with the reason.
    """

    name: str
    run: Function
    known: tuple[int, ...] = ()
    types: Types = "wide"
    note: str = ""
    named: Mapping[str, str] = field(default_factory=dict)


OPERATORS: dict[str, Operator] = {}
"""All of them, by name; filled by the modules of this package."""


def operator(
    *names: str, known: Sequence[int] = (), types: Types = "wide", note: str = "",
    named: Mapping[str, str] | None = None,
) -> Callable[[F], F]:  # fmt: skip
    """Registers a function for operators of these names."""

    def register(run: F) -> F:
        for name in names:
            OPERATORS[name] = Operator(name, run, tuple(known), types, note, dict(named or {}))
        return run

    return register


def along(axis: int, values: Tensor, rank: int) -> Tensor:
    """A vector as a tensor of that many axes, lying along one of them."""
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)
