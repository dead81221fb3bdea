"""Compiles the kernels of pooling, resizing and pointwise chains for one architecture, without a device."""

from __future__ import annotations

import sys

from tests.kernels.transformer_targets import KINDS, build
from wetread.engines.cuda.operations.pointwise import INSTRUCTIONS, encode
from wetread.kernels.device import pointwise, pool, resize

TABLES = {**{f"i{a}": "i32" for a in "dhw"}, **{f"f{a}": "fp32" for a in "dhw"}, "sums": "fp64", "p": "fp32"}
FINISH = {"RESIDUAL": True, "ACT": "leaky", "SLOPE": 0.01, "STATS": True, "REPLICAS": 8, "PDL": False}
TWO = (
    "add",
    "sub",
    "mul",
    "div",
    "min",
    "max",
    "greater",
    "less",
    "equal",
    "greater_or_equal",
    "less_or_equal",
)


def axes(prefix, value):
    return {prefix + axis: value for axis in "DHW"}


def every_instruction():
    """A chain that holds each instruction once; it reads two inputs."""
    program = []
    for name in INSTRUCTIONS:
        last = len(program) + 1
        if name == "pow":
            program.append([name, last, {"value": 0.5}])
        elif name == "where":
            program.append([name, last, 0, 1])
        else:
            program.append([name, last, *([0] if name in TWO else [])])
    return encode(program, 2)


def main(arch: int) -> None:
    window = {**axes("K", 3), **axes("S", 2), **axes("L", 1), **axes("P", 1), **axes("E", 1), "COUNT": False}
    box = {"TD": 2, "TH": 4, "TW": 8}
    half = {"OUT": KINDS["fp16"], "BC": 32, "PDL": False}
    parts = {"MAX": True, "BV": 64, "BC": 32, "PDL": False}
    build(pool.pool_parts, parts, arch, TABLES, "fp16")
    build(pool.pool_whole, {**half, "PARTS": 100, "MAX": True, "BP": 128}, arch, TABLES, "fp16")
    build(resize.double, {**FINISH, **half, "LINEAR": False, "BV": 32}, arch, TABLES, "fp16")
    for kind in ("fp16", "i8", *(["fp8e4nv"] if arch >= 89 else [])):
        out = {"OUT": KINDS[kind], "BC": 32, "PDL": False}
        build(pool.pool, {**window, **out, "MAX": kind == "i8", **box}, arch, {}, kind)
        build(resize.by_table, {**FINISH, **out, **axes("T", 2), "BV": 32}, arch, TABLES, kind)
        build(resize.double, {**FINISH, **out, "LINEAR": True, "BV": 32}, arch, TABLES, kind)
    chain = {"CODE": every_instruction(), "INPUTS": 2, "SIZES": (2, 640, 32), "WIDE": False, "BLOCK": 1024}
    strides = ((30000, 32, 1), (20480, 32, 1), (0, 0, 1))
    build(
        pointwise.pointwise, {**chain, "STRIDES": strides, "OUT": KINDS["i8"], "PDL": False}, arch, {}, "fp16"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
