"""Compiles the kernels of transformers for one architecture, without a device; prints what it did."""

from __future__ import annotations

import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wetread.kernels.device import attention, matmul, mlp, rows

KINDS = {"fp16": tl.float16, "bf16": tl.bfloat16, "fp32": tl.float32, "i8": tl.int8, "fp8e4nv": tl.float8e4nv}
FLOATS = {"inverse", "eps", "scale", "apart"}


def build(kernel, constants, arch, pointers, kind, warps=4):
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = f"*{pointers.get(name[:-4], kind)}"
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    source = ASTSource(kernel, signature, constexprs=constants)
    triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "num_stages": 2})
    print(kernel.fn.__name__, kind, f"sm_{arch}")


def linear(arch, kind):
    eight = kind in ("i8", "fp8e4nv")
    pointers = {"scale": "fp32", "bias": "fp32", "total": "fp32"}
    if eight:
        pointers |= {"y": "fp16", "residual": "fp16"}
    constants = {
        "K": 96, "K1": 2, "K2": 2, "K3": 24, "FLAT": False, "DENSE": False, "SCALED": eight, "BIASED": True,
        "RESIDUAL": True, "NORM": not eight, "NAME": "gelu", "P0": 0.0, "P1": 0.0, "BM": 64, "BN": 64, "BK": 64,
        "ACC": tl.int32 if kind == "i8" else tl.float32, "OUT": tl.float16 if eight else KINDS[kind],
        "PRECISION": "ieee", "PDL": False,
    }  # fmt: skip
    build(matmul.linear, constants, arch, pointers, kind)


def two_layers(arch, kind):
    constants = {
        "K": 48, "H": 192, "FLAT": True, "RESIDUAL": True, "NORM": True, "BIAS1": True, "BIAS2": True, "NAME": "gelu",
        "A0": 0.0, "A1": 0.0, "BM": 64, "BK": 64, "BH": 32, "BN": 64, "OUT": KINDS[kind], "PDL": False,
    }  # fmt: skip
    build(mlp.mlp, constants, arch, {"bias1": "fp32", "bias2": "fp32"}, kind)


def main(arch: int) -> None:
    for kind in ("fp16", "bf16", "fp32", "i8", *(("fp8e4nv",) if arch >= 89 else ())):
        linear(arch, kind)
    for kind in ("fp16", "bf16"):
        two_layers(arch, kind)
    for kind in ("fp16", "bf16", "fp32"):
        pointers = {"fill": "fp32", "regions": "i32"}
        windows = {"PD": 49, "PH": 49, "PW": 49, "SH0": 3, "SH1": 3, "SH2": 3, "S0": 7, "S1": 7, "S2": 7}
        common = {
            "F": 16,
            "BF": 16,
            "BM": 64,
            "BN": 64,
            "PRECISION": "ieee",
            "OUT": KINDS[kind],
            "PDL": False,
        }
        on = {"WINDOWED": True, "FILLED": True, "BIASED": True, "MASKED": False, "REGIONS": True}
        off = {"WINDOWED": False, "FILLED": False, "BIASED": False, "MASKED": True, "REGIONS": False}
        build(attention.attention, {**common, **windows, **on}, arch, pointers, kind)
        build(attention.attention, {**common, **dict.fromkeys(windows, 1), **off}, arch, pointers, kind)
        norm = {
            "RESIDUAL": True,
            "ADDED": True,
            "SCALED": True,
            "BIASED": True,
            "FLAT": True,
            "BM": 4,
            "BC": 64,
        }
        build(
            rows.layer_norm,
            {**norm, "OUT": KINDS[kind], "PDL": False},
            arch,
            {"gamma": "fp32", "beta": "fp32"},
            kind,
        )
        build(
            rows.softmax,
            {"LOG": False, "FLAT": True, "BM": 4, "BC": 64, "OUT": KINDS[kind], "PDL": False},
            arch,
            {},
            kind,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]))
