"""A convolution step as its kernels see it, from the program's specs alone: which families apply to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from wetread.engines.cuda.operations.base import Target
from wetread.engines.cuda.operations.geometry import geometry_of
from wetread.engines.cuda.program import Json, Program, Step, TensorSpec
from wetread.kernels.arguments import ACTIVATIONS, Geometry
from wetread.kernels.candidates import SHARED_BYTES, Chip, Layer
from wetread.kernels.hopper import first, march, march2, parts, point

EIGHT = (torch.int8, torch.uint8, torch.float8_e4m3fn)
HALVES = (torch.float16, torch.bfloat16)


def kernel_activation(activation: Mapping[str, Json] | None) -> tuple[str, float] | None:
    """Name and parameter of an activation as kernels take it; None where they do not have it."""
    if activation is None:
        return "leaky", 1.0
    name = str(activation["name"])
    if name == "relu":
        return "leaky", 0.0
    if name == "leaky":
        return name, float(activation["slope"])
    if name == "elu":
        return name, float(activation.get("alpha", 1.0))
    if name == "gelu" and activation.get("approximate") == "tanh":
        return "gelu_tanh", 1.0
    return (name, 1.0) if name in ACTIVATIONS else None


def chip(target: Target) -> Chip:
    """What tiles depend on of a device; the interpreter counts as a small one."""
    return Chip(max(target.processors, 1), target.shared_bytes or SHARED_BYTES)


def runs(dtype: torch.dtype, target: Target) -> bool:
    """Whether products of this type run on the device."""
    if dtype == torch.bfloat16:
        return not target.interpreted  # the interpreter's products of bfloat16 are wrong
    if dtype == torch.float8_e4m3fn:
        return target.interpreted or target.capability >= (8, 9)
    return dtype in (torch.float16, torch.int8)


def channels_inside(spec: TensorSpec) -> bool:
    """Whether the channels of a voxel lie one after the other."""
    return spec.strides[1] == 1 or spec.shape[1] == 1


def even_rows(spec: TensorSpec) -> bool:
    """Whether the rows of W are evenly spaced over D and H."""
    return len(spec.shape) < 5 or spec.shape[2] == 1 or spec.strides[2] == spec.shape[3] * spec.strides[3]


def even_voxels(spec: TensorSpec) -> bool:
    """Whether all voxels of a window are evenly spaced."""
    strides, shape = spec.strides[2:], spec.shape[2:]
    return all(strides[i] == shape[i + 1] * strides[i + 1] or shape[i] == 1 for i in range(len(shape) - 1))


def boxed(spec: TensorSpec) -> bool:
    """Whether tensor descriptors take it: start and strides are multiples of 16 bytes."""
    size = spec.torch_dtype.itemsize
    steps = (s for axis, s in enumerate(spec.strides) if axis != 1)
    return all(s * size % 16 == 0 for s in (spec.offset, *steps)) and spec.strides[1] == 1


def boxed_inputs(step: Step, program: Program) -> bool:
    """Whether descriptors take the inputs of a step and rows of its weight."""
    weight = program.spec(step.inputs["weight"])
    maps = [program.spec(step.inputs[role]) for role in ("x", "x2") if role in step.inputs]
    size = weight.torch_dtype.itemsize if weight.torch_dtype in EIGHT else maps[0].torch_dtype.itemsize
    return all(boxed(s) and s.shape[1] * size % 16 == 0 for s in maps)


@dataclass(frozen=True)
class Site:
    """A convolution of a program.

    Attributes:
        x, y: of the step.
        channels: of each input.
        operand: type of the product's operands.
        weight: shape.
        geometry: of the convolution.
        norm: on load, or None.
        even: whether rows of x are evenly spaced, so that a norm may be applied apart.
        layer: as tiles see it.
        unsigned: x is uint8: tiles take value − 128, other kernels make it float16.
        hopper: whether the kernels of sm_90a take what surrounds the product (types, alignment, activations).
    """

    x: TensorSpec
    y: TensorSpec
    channels: tuple[int, ...]
    operand: torch.dtype
    weight: tuple[int, ...]
    geometry: Geometry
    norm: Mapping[str, Json] | None
    even: bool
    layer: Layer
    unsigned: bool
    hopper: bool

    @classmethod
    def of(cls, step: Step, program: Program, target: Target) -> Site | None:
        """The site of a conv or conv_norm step; None where no own kernel runs it."""
        specs = {role: program.spec(name) for role, name in (*step.inputs.items(), *step.outputs.items())}
        x, y, weight = specs["x"], specs["y"], specs["weight"]
        norm = step.attributes.get("norm") if step.op == "conv" else None
        operand = weight.torch_dtype if weight.torch_dtype in EIGHT else x.torch_dtype
        if x.torch_dtype == torch.float32 and y.torch_dtype in HALVES and sum(weight.shape[1:2]) < 16:
            operand = y.torch_dtype
        maps = [x, *(specs[r] for r in ("x2", "residual") if r in specs)]
        if (
            not runs(operand, target)
            or not all(channels_inside(s) for s in maps)
            or y.torch_dtype == torch.float64
        ):
            return None
        if _unlike(x, specs.get("x2"), operand, norm is not None):
            return None
        geometry = geometry_of(step, weight.shape)
        applied = [step.attributes.get("activation"), *([] if norm is None else [norm["activation"]])]
        if any(kernel_activation(a) is None for a in applied):
            return None
        channels = (x.shape[1], *([specs["x2"].shape[1]] if "x2" in specs else []))
        size = operand.itemsize
        boxes = [s for r, s in specs.items() if r in ("x", "x2", "y") and (r != "x" or norm is None)]
        layer = Layer(
            x.shape[0], channels, weight.shape[0], operand, geometry, _three(y.shape[2:]),
            boxes=all(boxed(s) for s in boxes) and all(c * size % 16 == 0 for c in channels),
            evens=len(channels) == 1 and norm is None and _evens(x),
            flat=all(even_voxels(s) for s in (*maps, y)), splits=even_rows(y) and all(even_rows(s) for s in maps),
        )  # fmt: skip
        leaky = all((kernel_activation(a) or ("", 0))[0] == "leaky" for a in applied)
        half = all(specs[r].dtype == "float16" for r in ("residual",) if r in specs)
        aligned = all(boxed(specs[r]) for r in ("x2", "residual", "y") if r in specs)
        hopper = target.hopper and leaky and half and aligned and y.torch_dtype in parts.OUTPUTS
        return cls(
            x, y, channels, operand, weight.shape, geometry, norm, even_rows(x), layer,
            x.torch_dtype == torch.uint8, hopper,
        )  # fmt: skip

    def marched(self, outputs: int | None = None) -> bool:
        """Whether kernel march takes it (with its norm on load, if there is one), so many outputs a block."""
        if not self.hopper or not self.geometry.cube or not boxed(self.x):
            return False
        if self.norm is not None and self.x.dtype != "float16":
            return False
        return march.applies(self.channels, self.weight[0], self.operand, self.norm is not None, outputs)

    def marched_by_two(self, outputs: int) -> bool:
        """Whether kernel march2 takes it: 3×3×3 at stride 2."""
        g = self.geometry
        ones, twos = (1, 1, 1), (2, 2, 2)
        fits = g.kernel == (3, 3, 3) and g.stride == twos and g.dilation == ones == g.before and g.groups == 1
        # of an even size the zeros after it are never read
        ends = all(
            a in (0, 1) if n % 2 == 0 else a == 1
            for n, a in zip(_three(self.x.shape[2:]), g.after, strict=True)
        )
        plain = self.hopper and len(self.channels) == 1 and self.norm is None and boxed(self.x)
        if not (plain and fits and ends) or self.x.shape[-1] < 2:
            return False
        return march2.applies(self.channels[0], self.weight[0], self.operand, outputs)

    @property
    def first(self) -> bool:
        """Whether kernel first takes it: 3×3×3 of one channel."""
        plain = self.hopper and self.geometry.cube and len(self.channels) == 1 and self.norm is None
        return plain and first.applies(self.channels[0], self.weight[0], self.x.torch_dtype)

    @property
    def point(self) -> bool:
        """Whether Hopper's kernel takes the head: float16, results in contiguous planes; what follows it aside."""
        x, y, half = self.x, self.y, torch.float16
        planes = y.strides[-1] == 1 and even_voxels(y) and boxed(x) and even_voxels(x)
        kinds = x.torch_dtype == self.operand == half and y.torch_dtype in (half, torch.float32)
        leaky = self.norm is None or (kernel_activation(self.norm["activation"]) or ("", 0))[0] == "leaky"
        return (
            self.head
            and planes
            and kinds
            and leaky
            and point.applies_head(self.channels[0], self.weight[0], half)
        )

    @property
    def head(self) -> bool:
        """Whether kernel head takes it: 1×1×1 to at most 32 classes from at most 256 channels."""
        few = self.weight[0] <= 32 and len(self.channels) == 1 and self.channels[0] <= 256
        return few and self.geometry.point and self.y.torch_dtype.is_floating_point


def _unlike(x: TensorSpec, x2: TensorSpec | None, operand: torch.dtype, normed: bool) -> bool:
    if x2 is not None and (x2.dtype != x.dtype or normed):
        return True
    if normed:
        return x.torch_dtype not in (*HALVES, torch.float32)
    kinds = (operand, torch.float32) if operand in HALVES else (operand,)
    unsigned = x.torch_dtype == torch.uint8 and operand == torch.int8
    return x.torch_dtype not in kinds and not unsigned


def _evens(x: TensorSpec) -> bool:
    """Whether H and W are even, rows dense, planes evenly spaced over windows."""
    n, c, *size = x.shape
    if len(size) < 3 or size[1] % 2 or size[2] % 2 or x.strides[4] != c:
        return False
    return n == 1 or x.strides[0] == size[0] * x.strides[2]


def _three(size: tuple[int, ...]) -> tuple[int, int, int]:
    d, h, w = (1,) * (3 - len(size)) + tuple(size)
    return d, h, w
