"""What an operation is: its meaning in torch, the kernels that may run it, how one is launched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch

from wetread.engines.cuda.program import Json, Program, Step, TensorSpec

Tensor: TypeAlias = torch.Tensor
Kernel: TypeAlias = Mapping[str, Json]
"""A kernel and its tile sizes, as plain data: ``family`` says which, the rest is the family's own."""


@dataclass(frozen=True)
class Target:
    """The device that kernels are chosen for.

    Attributes:
        capability: of the GPU, such as (9, 0); (0, 0) is the CPU, where only library kernels run, or Triton's
            interpreter in tests.
        shared_bytes: largest shared memory of a block.
        processors: streaming multiprocessors.
        interpreted: Triton runs under its interpreter.
    """

    capability: tuple[int, int] = (0, 0)
    shared_bytes: int = 0
    processors: int = 1
    interpreted: bool = False

    @property
    def triton(self) -> bool:
        """Whether Triton's kernels run there."""
        return self.interpreted or self.capability >= (8, 0)

    @property
    def hopper(self) -> bool:
        """Whether kernels of sm_90a run there."""
        return self.capability[0] == 9 and not self.interpreted


@dataclass
class Packs:
    """Weights as kernels read them, made once for an engine and shared by its contexts."""

    made: dict[tuple[Any, ...], Tensor | tuple[Tensor, ...]] = field(default_factory=dict)

    def get(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What was made under this key (weight's name, packing, its constants), made now at the first call."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


@dataclass
class Arrays:
    """The tensors of one step, on their device.

    Attributes:
        inputs, outputs: by role; logical shapes of the program, strides as stored.
        scratch: flat uint8, of `Operation.scratch_bytes`; None where none is needed.
        packs: of the engine.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    scratch: Tensor | None = None
    packs: Packs = field(default_factory=Packs)


@dataclass(frozen=True)
class Work:
    """What a step must do at least: operations of the direct algorithm, and bytes that cross the memory bus."""

    flop: int = 0
    bytes: int = 0


class Operation(ABC):
    """One kind of step.

    Attributes:
        name: `Step.op`.
        native: False where wetread has no kernel of its own for it, which `wetread inspect` shows.
    """

    name: ClassVar[str]
    native: ClassVar[bool] = True

    @abstractmethod
    def reference(self, step: Step, at: Arrays) -> None:
        """Computes the step in float32 (in float64 where its inputs are), rounds once, writes the outputs.

        This is the meaning of the operation: kernels are compared with it, tests run it against the graph.
        It runs on any device, may allocate, and writes outputs with `copy_` into the given views.
        """

    def library(self, step: Step, at: Arrays) -> None:
        """The step by library kernels in the tensors' own types, as it runs where no own kernel does."""
        self.reference(step, at)

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """Own kernels worth timing, likely winners first; none where only the library runs it."""
        return []

    def scratch_bytes(self, step: Step, program: Program, kernel: Kernel | None) -> int:
        """Memory that the kernel needs besides the step's tensors, in bytes."""
        return 0

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """Packs weights, makes descriptors; the returned function launches and allocates nothing.

        Raises:
            EngineError: the kernel does not take these tensors.
        """
        raise NotImplementedError(f"{self.name} has no kernel of its own")

    def work(self, step: Step, program: Program) -> Work:
        """The floor under the step: by default each tensor crosses the bus once and nothing is computed."""
        names = dict.fromkeys((*step.inputs.values(), *step.outputs.values()))
        specs = [program.spec(name) for name in names]
        return Work(0, sum(_least_bytes(spec) for spec in specs))


def _least_bytes(spec: TensorSpec) -> int:
    size = int(spec.torch_dtype.itemsize)
    for length in spec.shape:
        size *= length
    return size


def wide(tensor: Tensor) -> Tensor:
    """A floating tensor in float32, or in float64 where it is; an 8-bit one in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def store(value: Tensor, out: Tensor, inverse: float = 1.0) -> None:
    """Rounds a wide result into an output view; 8-bit types hold value · inverse, saturated.

    Integers are rounded half to even, as ONNX's QuantizeLinear does.
    """
    if out.dtype in (torch.int8, torch.uint8):
        low, high = (-128, 127) if out.dtype == torch.int8 else (0, 255)
        out.copy_((value * inverse).round().clamp(low, high))
    elif out.dtype == torch.float8_e4m3fn:
        out.copy_((value * inverse).clamp(-448, 448).to(out.dtype))
    else:
        out.copy_(value)


def activate(value: Tensor, activation: Mapping[str, Json] | None) -> Tensor:
    """Applies an activation: {"name": ..., parameters}; None is none.

    Names: relu; leaky (slope); prelu is leaky with one slope; elu (alpha); sigmoid; tanh; silu; mish;
    gelu (approximate: "none" or "tanh"); clip (low, high); hard_sigmoid (alpha, beta); hard_swish.
    """
    if activation is None:
        return value
    f = torch.nn.functional
    name = activation["name"]
    if name == "leaky":
        return f.leaky_relu(value, float(activation["slope"]))
    if name == "elu":
        return f.elu(value, float(activation.get("alpha", 1.0)))
    if name == "gelu":
        return f.gelu(value, approximate=str(activation.get("approximate", "none")))
    if name == "clip":
        return value.clamp(activation.get("low"), activation.get("high"))
    if name == "hard_sigmoid":
        return (value * float(activation["alpha"]) + float(activation["beta"])).clamp(0, 1)
    plain: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "silu": f.silu, "mish": f.mish,
        "hard_swish": f.hardswish,
    }  # fmt: skip
    return plain[name](value)


def slope_of(activation: Mapping[str, Json] | None) -> float | None:
    """The slope that kernels take for none (1), ReLU (0) and leaky ReLU; None where it is another activation."""
    if activation is None:
        return 1.0
    if activation["name"] == "relu":
        return 0.0
    return float(activation["slope"]) if activation["name"] == "leaky" else None
