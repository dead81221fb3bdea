"""docs/cuda-operators.md, written from the tables of handlers and of operators that torch runs.

python -m wetread.engines.cuda.lower.listing > docs/cuda-operators.md
"""

from __future__ import annotations

import sys
from textwrap import fill

from wetread.engines.cuda.lower import handlers
from wetread.engines.cuda.lower.lowering import HANDLERS
from wetread.engines.cuda.operations.fallback import OPERATORS

_HEAD = """\
# Operators of the CUDA engine

This page is written from the code by `python -m wetread.engines.cuda.lower.listing`; a test holds it to that.

The engine takes networks of ONNX's operator sets 11 to 25. An operator is run in one of two ways, and any other is
refused by name when the engine is built (`UnsupportedOperatorError`: the operator, the node and what to do). So is one
whose result's shape hangs on values of the network's input, such as NonZero, Unique or Compress, and so are control
flow, sequences, strings and random numbers. `wetread inspect` shows for each step of a plan which way it runs.

## With kernels of wetread's own

Where shapes, types and attributes are those that the kernels know (three-dimensional maps, constant parameters); other
uses go through torch, if the second list has the operator, and are refused if not. Most of these do not become steps of
their own but parts of their neighbours' or views of memory.

"""
_TORCH = """
## Through torch

One step of PyTorch's operations each, in the plan and in its CUDA graph like every other step. Each operator passes all
of ONNX's own node tests for it, on the CPU, but those named, and those in types that torch has not (strings, integers
and floats of 2 and 4 bits, sequences, optionals). Half types are computed in float32 where many values are added. An
input that *must be constant* decides shapes or is read before the network runs.

| operator | must be constant | remarks |
|---|---|---|
"""


def markdown() -> str:
    """The page."""
    handlers.load()
    standard = sorted(name for name in HANDLERS if "." not in name)
    own = sorted(name.split(".")[1] for name in HANDLERS if "." in name)
    text = _HEAD + fill(", ".join(standard) + ".", 120) + "\n\n"
    text += (
        fill("Functions of the domain `wetread`, which the passes write: " + ", ".join(own) + ".", 120)
        + "\n"
        + _TORCH
    )
    for name in sorted(OPERATORS):
        operator = OPERATORS[name]
        known = ", ".join(f"input {i}" for i in operator.known)
        reasons: dict[str, list[str]] = {}
        for case, why in operator.named.items():
            reasons.setdefault(why, []).append(f"`{case}`")
        remarks = [operator.note] if operator.note else []
        remarks += [f"not {', '.join(found)}: {why}" for why, found in reasons.items()]
        text += f"| {name} | {known} | {'; '.join(remarks)} |\n"
    return text


if __name__ == "__main__":
    sys.stdout.write(markdown())
