"""Norms go where their input is read or written: on load into the one reader, or into a small convolution."""

from __future__ import annotations

from wetread.engines.cuda.lower.edit import EIGHT, Uses, fused, merged, put, repeat, sloped
from wetread.engines.cuda.lower.fuse_epilogue import is_head, marches
from wetread.engines.cuda.program import Json, Program, Step
from wetread.kernels.hopper import march

SMALL = 1000
"""Voxels of a window up to which one program holds a channel, takes its statistics and normalises: 10³. For 256
channels of 16³ voxels that took 37 µs on an H200, a convolution with sums and a norm 26 and 3."""

ON_LOAD = 4096
"""Voxels of a window above which a norm's own pass costs more than normalising on load."""

HEAD_INPUT = 128
"""Channels up to which a head or a transposed convolution normalises on load: one block of K."""


def small(program: Program) -> None:
    """A convolution and the instance norm of what it makes, for small volumes: ``conv_norm``."""
    repeat(program, _small)


def _small(program: Program, uses: Uses, norm: Step) -> bool:
    if norm.op != "norm" or "residual" in norm.inputs or not fused(norm.attributes["activation"]):
        return False
    x, sums = norm.inputs["x"], norm.inputs["sums"]
    conv = uses.maker(x)
    if conv is None or conv.op != "conv" or conv.outputs.get("sums") != sums:
        return False
    if not (uses.only(x, norm) and uses.only(sums, norm)):
        return False
    shape, a = program.spec(x).shape, conv.attributes
    if shape[2] * shape[3] * shape[4] > SMALL or norm.attributes["groups"] != shape[1]:
        return False
    if a["activation"] is not None or a["norm"] is not None or "residual" in conv.inputs:
        return False
    inputs = dict(conv.inputs) | {r: norm.inputs[r] for r in ("gamma", "beta") if r in norm.inputs}
    inputs.pop("bias", None)  # an instance norm takes it away
    step = Step(
        conv.name, "conv_norm", inputs, {"y": norm.outputs["y"]},
        {**{k: a[k] for k in ("stride", "dilation", "pads", "groups", "tf32") if k in a}, "norm": _applied(norm, 1.0),
         "inverse": norm.attributes["inverse"]},
        tuple(dict.fromkeys((*conv.nodes, *norm.nodes))),
    )  # fmt: skip
    put(program, step, conv, [norm])
    return True


def on_load(program: Program) -> None:
    """A norm whose result one step alone reads is applied by that step as it loads.

    Into 3×3×3 convolutions of few channels (where kernel march takes them), transposed convolutions and heads: all
    others would normalise each voxel many times, or in an inner loop that is bound by arithmetic.
    """
    repeat(program, _on_load)


def _on_load(program: Program, uses: Uses, norm: Step) -> bool:
    if norm.op != "norm" or "residual" in norm.inputs or not sloped(norm.attributes["activation"]):
        return False
    y = norm.outputs["y"]
    found = uses.sole_reader(y)
    if found is None or found[1] != "x" or uses.maker(y) is not norm:
        return False
    reader = found[0]
    if (
        reader.op not in ("conv", "upconv")
        or reader.attributes.get("norm") is not None
        or "x2" in reader.inputs
    ):
        return False
    shape = program.spec(y).shape
    if len(shape) != 5 or shape[2] * shape[3] * shape[4] <= ON_LOAD or not _takes(program, reader, norm):
        return False
    eight = program.spec(y).dtype in EIGHT
    inputs = {**reader.inputs, "x": norm.inputs["x"], "sums": norm.inputs["sums"]}
    inputs |= {r: norm.inputs[r] for r in ("gamma", "beta") if r in norm.inputs}
    inverse = float(norm.attributes["inverse"]) if eight else 1.0
    put(program, merged(reader, norm, inputs=inputs, norm=_applied(norm, inverse)), reader, [norm])
    return True


def _takes(program: Program, reader: Step, norm: Step) -> bool:
    """Whether the reader's kernels normalise on load."""
    raw, y = program.spec(norm.inputs["x"]), program.spec(norm.outputs["y"])
    weight, a = program.spec(reader.inputs["weight"]).shape, reader.attributes
    if raw.dtype not in ("float16", "bfloat16") or a["groups"] != 1:
        return False
    channels = raw.shape[1]
    if reader.op == "upconv" or is_head(program, reader):
        fits = channels <= HEAD_INPUT and channels & (channels - 1) == 0
        return fits and (reader.op != "upconv" or _doubling(weight, reader))
    if raw.dtype != "float16" or not marches(program, reader):
        return False
    return march.applies((channels,), weight[0], y.torch_dtype, True)


def _doubling(weight: tuple[int, ...], step: Step) -> bool:
    a = step.attributes
    plain = list(a["stride"]) == [2] * 3 and not any(a["pads"]) and not any(a["output_padding"])
    return plain and tuple(weight[2:]) == (2, 2, 2) and list(a["dilation"]) == [1] * 3


def _applied(norm: Step, inverse: float) -> dict[str, Json]:
    a = norm.attributes
    return {"eps": a["eps"], "groups": a["groups"], "activation": a["activation"], "inverse": inverse}
