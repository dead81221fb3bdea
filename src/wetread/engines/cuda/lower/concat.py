"""Concatenations that are never made, and copies that are written where they shall lie."""

from __future__ import annotations

from dataclasses import replace

from wetread.engines.cuda.lower.edit import EIGHT, FLOATS, Uses, drop, merged, put, repeat
from wetread.engines.cuda.lower.fuse_epilogue import is_head
from wetread.engines.cuda.program import Program, Step

_ANYWHERE = ("pointwise", "torch", "pool", "softmax", "quantise", "dequantise", "copy")
"""Operations that write any strides; others write channels last, where channels are neighbours."""

_SLICES = (
    "conv",
    "conv_norm",
    "norm",
    "upconv",
    "resize",
    "pool",
    "pointwise",
    "quantise",
    "dequantise",
    "copy",
)
"""Operations that write into a slice of channels."""


def pairs(program: Program) -> None:
    """Convolutions that alone read a concatenation of two tensors along the channels read both."""
    repeat(program, _pairs)


def _pairs(program: Program, uses: Uses, copy: Step) -> bool:
    if copy.op != "copy":
        return False
    y = program.base(copy.outputs["y"])
    spec = program.tensors[y]
    copies = [s for s in program.steps if s.op == "copy" and program.base(s.outputs["y"]) == y]
    writers = [s for s in program.steps if y in {program.base(n) for n in s.outputs.values()}]
    if (
        len(copies) != 2
        or len(writers) != 2
        or uses.is_output(y)
        or y in program.inputs
        or len(spec.shape) != 5
    ):
        return False
    first, second = sorted(copies, key=lambda s: program.tensors[s.outputs["y"]].offset)
    pieces = [program.tensors[s.outputs["y"]] for s in (first, second)]
    sources = [program.spec(s.inputs["x"]) for s in (first, second)]
    whole = pieces[0].offset == 0 and pieces[1].offset == pieces[0].shape[1] * spec.strides[1]
    whole = whole and pieces[0].shape[1] + pieces[1].shape[1] == spec.shape[1]
    if not whole or any(p.strides != spec.strides or p.shape[2:] != spec.shape[2:] for p in pieces):
        return False
    multiple = 32 if spec.dtype in EIGHT else 16
    if any(s.dtype != spec.dtype or s.shape[1] % multiple or s.strides[1] != 1 for s in sources):
        return False
    readers = uses.readers(y)
    if not readers or not all(_may_read_two(step, role, y) for step, role in readers):
        return False
    names = {"x": first.inputs["x"], "x2": second.inputs["x"]}
    for step, _ in readers:
        put(program, merged(step, copy, inputs={**step.inputs, **names}), step)
    for step in copies:
        drop(program, step)
    return True


def _may_read_two(step: Step, role: str, name: str) -> bool:
    if step.op not in ("conv", "conv_norm") or role != "x" or step.inputs["x"] != name or "x2" in step.inputs:
        return False
    on_load = step.op == "conv" and step.attributes.get("norm") is not None
    return step.attributes["groups"] == 1 and not on_load


def in_place(program: Program) -> None:
    """A tensor that is copied into a slice of another is written there at once; its other readers read the slice."""
    repeat(program, _in_place)


def _in_place(program: Program, uses: Uses, copy: Step) -> bool:
    if copy.op != "copy":
        return False
    x, y = copy.inputs["x"], copy.outputs["y"]
    maker = uses.maker(x)
    if maker is None or maker.op not in _SLICES or y not in program.tensors or not program.tensors[y].base:
        return False
    source, piece = program.tensors[x], program.tensors[y]
    viewed = any(spec.base == x for spec in program.tensors.values())
    if (
        viewed
        or uses.is_output(x)
        or source.zeroed
        or source.shape != piece.shape
        or source.dtype != piece.dtype
    ):
        return False
    neighbours = len(piece.shape) == 5 and source.strides[1] == piece.strides[1] == 1
    if not neighbours and maker.op not in _ANYWHERE:
        return False
    aligned = 16 // program.spec(y).torch_dtype.itemsize
    if maker.op not in _ANYWHERE and (piece.offset % aligned or piece.strides[4] % aligned):
        return False
    program.tensors[x] = replace(source, strides=piece.strides, base=piece.base, offset=piece.offset)
    drop(program, copy)
    if not any(y in (*s.inputs.values(), *s.outputs.values()) for s in program.steps):
        del program.tensors[y]
    return True


def conversions(program: Program) -> None:
    """A copy that changes type or strides of what nothing else reads is left to the step before it."""
    repeat(program, _conversions)


def _conversions(program: Program, uses: Uses, copy: Step) -> bool:
    if copy.op != "copy":
        return False
    x, y = copy.inputs["x"], copy.outputs["y"]
    maker = uses.maker(x)
    if maker is None or not uses.only(x, copy) or maker.outputs.get("y") != x or uses.maker(y) is None:
        return False
    source, wanted = program.tensors[x], program.tensors[y]
    if source.dtype not in FLOATS or wanted.dtype not in FLOATS or "sums" in maker.outputs:
        return False
    narrower = wanted.torch_dtype.itemsize <= source.torch_dtype.itemsize
    same_place = source.strides == wanted.strides
    if source.dtype != wanted.dtype and maker.op in ("torch", "copy"):
        return False
    if not narrower and not same_place and not is_head(program, maker):
        return False
    if not same_place and maker.op not in _ANYWHERE and not is_head(program, maker):
        return False
    put(program, merged(maker, copy, outputs={**maker.outputs, "y": y}), maker, [copy])
    return True
