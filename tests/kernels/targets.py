"""Compiles every Triton kernel for one architecture, without a device (python targets.py 90); prints what it did."""

from __future__ import annotations

import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wetread.kernels.device import conv, norm, small

FLOATS = {"inverse", "in_inverse", "eps"}
EPILOGUE = {"OUT": tl.float16, "ACT": "leaky", "SLOPE": 0.01, "REPLICAS": 8, "PDL": False}
FULL = {**EPILOGUE, "SCALED": True, "BIASED": True, "RESIDUAL": True, "STATS": True}
ON_LOAD = {"NORM": True, "IN_ACT": "leaky", "IN_SLOPE": 0.01, "GROUP": 4}


def axes(prefix, value):
    return {prefix + axis: value for axis in "DHW"}


TRITON_TYPES = {
    "fp16": (tl.float16, tl.float32),
    "i8": (tl.int8, tl.int32),
    "fp8e4nv": (tl.float8e4nv, tl.float32),
}


def build(kernel, constants, arch, kind="fp16", descriptors=None, warps=4):
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in (descriptors or {}):
            signature[name] = f"tensordesc<{descriptors[name]}>"
        elif name.endswith("_ptr"):
            wide = name[:-4] in ("scale", "bias", "gamma", "beta", "rgamma", "rbeta", "patch", "p")
            eight = kind if name[:-4] in ("x", "x0", "x1", "w", "w0", "w1") else "fp16"
            signature[name] = (
                "*fp64" if name in ("sums_ptr", "rsums_ptr") else "*fp32" if wide else f"*{eight}"
            )
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    source = ASTSource(kernel, signature, constexprs=constants)
    triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "num_stages": 2})
    print(kernel.fn.__name__, kind, f"sm_{arch}")


def main(arch: int) -> None:
    for kind in ("fp16", "i8", *(("fp8e4nv",) if arch >= 89 else ())):
        acc = TRITON_TYPES[kind][1]
        shape = {"C0": 64, "C1": 32, "BN": 64, "BK": 32, "ACC": acc}
        boxes = {f"w{i}_desc": f"{kind}[1,64,32]" for i in (0, 1)}
        taps = {
            **boxes,
            **{f"x{i}_desc": f"{kind}[1,2,4,8,32]" for i in (0, 1)},
            "y_desc": "fp16[1,2,4,8,64]",
        }
        planes = {
            **boxes,
            **{f"x{i}_desc": f"{kind}[1,1,8,8,32]" for i in (0, 1)},
            "y_desc": "fp16[1,1,8,8,64]",
        }
        steps = {**axes("L", 1), **axes("P", 1), **axes("K", 3)}
        build(
            conv.gather,
            {**shape, **FULL, **steps, **axes("S", 2), "BM": 64, "SPLITS": 1, "UNSIGNED": kind == "i8"},
            arch,
            kind,
        )
        build(
            conv.taps,
            {**shape, **FULL, **steps, "TD": 2, "TH": 4, "TW": 8, "SPLITS": 1, "UNSIGNED": kind == "i8"},
            arch,
            kind,
            taps,
        )
        build(
            conv.planes,
            {
                **shape,
                **FULL,
                "TD": 2,
                "TH": 8,
                "TW": 8,
                "PAIRS": False,
                **axes("L", 2),
                "UNSIGNED": kind == "i8",
            },
            arch,
            kind,
            planes,
        )
        halves = {
            "x_desc": f"{kind}[1,8,1,8,32]", "w_desc": f"{kind}[1,64,32]", "y_desc": "fp16[1,1,8,8,64]",
        }  # fmt: skip
        alone = {k: v for k, v in shape.items() if k not in ("C0", "C1")}
        build(conv.strided, {**alone, **FULL, **steps, "C": 64, "SD": 2, "TH": 8, "TW": 8, "SPLITS": 2,
              "UNSIGNED": kind == "i8"}, arch, kind, halves)  # fmt: skip
        small_type = {"IN": TRITON_TYPES[kind][0], "ACC": acc}
        up = {k: v for k, v in FULL.items() if k not in ("STATS", "RESIDUAL")}
        build(small.upconv, {**up, **ON_LOAD, **small_type, "C": 64, "CO": 32, "BM": 64, "BN": 64, "BK": 64, "TAPS": 4,
              "KD": 2, "KH": 2, "HALO": False, "DENSE": True}, arch, kind)  # fmt: skip
        build(norm.norm_apply, {**EPILOGUE, "OUT": TRITON_TYPES[kind][0], "HALO": 0, "BV": 64, "BC": 32, "LOOP": 1,
              "RESIDUAL": True, "RNORM": True, "GROUP": 4}, arch)  # fmt: skip
        build(small.head, {**{k: v for k, v in up.items() if k != "OUT"}, **ON_LOAD, **small_type, "C": 48, "BC": 64,
              "K": 3, "BM": 64, "BK": 16, "SOFTMAX": True, "ADD": True, "LOOP": 2}, arch, kind)  # fmt: skip
        build(small.few, {**FULL, "C": 1, **axes("K", 3), **axes("S", 1), **axes("P", 1), "BM": 64, "BN": 32, "K": 32,
              "BK": 32, "ACC": acc, "BORDER": True, "ACROSS": False}, arch, kind)  # fmt: skip
        build(small.depthwise, {**FULL, **steps, **axes("S", 1), "EACH": 1, "BM": 64, "BN": 32}, arch, kind)
    reduced = {"SPLITS": 4, "BV": 256, "BC": 8, "OUT": tl.float16, "ACT": "gelu", "SLOPE": 0.01, "PDL": False}
    build(norm.norm_reduce, {**reduced, "GROUP": 4}, arch)
    build(norm.reduce, {**FULL, **reduced}, arch)
    build(norm.stats, {"BV": 64, "BC": 32, "PARTS": 4, "REPLICAS": 8, "PDL": False}, arch)


if __name__ == "__main__":
    main(int(sys.argv[1]))
