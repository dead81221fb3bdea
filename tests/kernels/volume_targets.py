"""Compiles the kernels round a whole volume for one architecture, without a device; prints what it did."""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wetread.kernels.device import volume

TYPES = {
    "v": "fp32", "x": "fp16", "y": "fp16", "r": "fp16", "starts": "i32", "slots": "i32", "wd": "fp32", "wh": "fp32",
    "ww": "fp32", "labels": "u8", "values": "fp16", "bad": "i32",
}  # fmt: skip
TABLES = {f"{what}_{axis}" for what in ("firsts", "starts") for axis in "dhw"}


def build(kernel, constants, arch):
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in TABLES:
            signature[name] = "*i32"
        elif name.endswith("_ptr"):
            signature[name] = f"*{TYPES[name[:-4]]}"
        else:
            signature[name] = "fp32" if name == "fill" else "i32"
    source = ASTSource(kernel, signature, constexprs=constants)
    triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 4})
    print(kernel.fn.__name__, f"sm_{arch}")


def main(arch: int) -> None:
    build(volume.cut, {"BLOCK": 1024}, arch)
    build(volume.keep, {"BLOCK": 1024}, arch)
    covers = {"CD": 2, "CH": 2, "CW": 3}
    tiles = {"ALIGN": 8, "BY": 4, "BX": 64}
    build(volume.stitch, {**covers, **tiles, "K": 3, "LABELS": True, "VALUES": True}, arch)


if __name__ == "__main__":
    main(int(sys.argv[1]))
