"""The functions of the domain ``wetread``: each body is the definition of its operator in standard ones.

A pass that recognises an operator which the network's operator set does not have replaces it by a call. The
function travels in the model, so that whoever runs standard ONNX can run it, and `Graph.inlined` resolves it.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import parser

from wetread.graph.change import DOMAIN

OLDEST = 15
"""Oldest operator set that all bodies are written in (CastLike came with it)."""

_BODIES = {
    # x · σ(x): Elfwing et al. 2018; ONNX's Swish of operator set 24
    "Swish": """(x) => (y) {
        s = Sigmoid (x)
        y = Mul (x, s)
    }""",
    # x · tanh(softplus(x)): Misra 2019; ONNX's Mish of operator set 18
    "Mish": """(x) => (y) {
        p = Softplus (x)
        t = Tanh (p)
        y = Mul (x, t)
    }""",
    # x · Φ(x): Hendrycks and Gimpel 2016; ONNX's Gelu of operator set 20
    "Gelu": """(x) => (y) {
        root_ = Constant <value_float: float = 1.4142135623730951> ()
        one_ = Constant <value_float: float = 1.0> ()
        half_ = Constant <value_float: float = 0.5> ()
        root = CastLike (root_, x)
        one = CastLike (one_, x)
        half = CastLike (half_, x)
        d = Div (x, root)
        e = Erf (d)
        a = Add (e, one)
        m = Mul (x, a)
        y = Mul (m, half)
    }""",
    # the approximation of Gelu by tanh; ONNX's Gelu with approximate="tanh"
    "GeluTanh": """(x) => (y) {
        c_ = Constant <value_float: float = 0.044715> ()
        r_ = Constant <value_float: float = 0.7978845608028654> ()
        one_ = Constant <value_float: float = 1.0> ()
        half_ = Constant <value_float: float = 0.5> ()
        c = CastLike (c_, x)
        r = CastLike (r_, x)
        one = CastLike (one_, x)
        half = CastLike (half_, x)
        q = Mul (x, x)
        k = Mul (q, x)
        ck = Mul (k, c)
        s = Add (x, ck)
        rs = Mul (s, r)
        t = Tanh (rs)
        a = Add (t, one)
        m = Mul (x, a)
        y = Mul (m, half)
    }""",
    # Wu and He 2018; grouped: shape (0, groups, -1); unit, zero: of length groups; scale, bias: (channels, 1, ...)
    "GroupNormalization": """<epsilon> (x, grouped, unit, zero, scale, bias) => (y) {
        g = Reshape (x, grouped)
        n = InstanceNormalization <epsilon: float = @epsilon> (g, unit, zero)
        s = Shape (x)
        b = Reshape (n, s)
        m = Mul (b, scale)
        y = Add (m, bias)
    }""",
    # softmax(scale · q kᵀ) v: Vaswani et al. 2017; q, k, v: (batch, heads, tokens, features)
    "Attention": """(q, k, v, scale) => (y) {
        qs = Mul (q, scale)
        kt = Transpose <perm: ints = [0, 1, 3, 2]> (k)
        s = MatMul (qs, kt)
        p = Softmax <axis: int = -1> (s)
        y = MatMul (p, v)
    }""",
    # the same with a bias for each pair of tokens, as windows of Swin have it: Liu et al. 2021
    "WindowAttention": """(q, k, v, scale, bias) => (y) {
        qs = Mul (q, scale)
        kt = Transpose <perm: ints = [0, 1, 3, 2]> (k)
        s = MatMul (qs, kt)
        b = Add (s, bias)
        p = Softmax <axis: int = -1> (b)
        y = MatMul (p, v)
    }""",
    # shifted windows: mask (1, windows, 1, tokens, tokens) keeps apart what the shift brought together;
    # split, merged: shapes with and without an axis for windows
    "ShiftedWindowAttention": """(q, k, v, scale, bias, mask, split, merged) => (y) {
        qs = Mul (q, scale)
        kt = Transpose <perm: ints = [0, 1, 3, 2]> (k)
        s = MatMul (qs, kt)
        b = Add (s, bias)
        w = Reshape (b, split)
        m = Add (w, mask)
        r = Reshape (m, merged)
        p = Softmax <axis: int = -1> (r)
        y = MatMul (p, v)
    }""",
    # cyclic shift along one axis: x[begin:], then x[:begin]
    "Roll": """<axis, axes> (x, begin) => (y) {
        zero = Constant <value_ints: ints = [0]> ()
        end = Constant <value_ints: ints = [9223372036854775807]> ()
        at = Constant <value_ints: ints = @axes> ()
        a = Slice (x, begin, end, at)
        b = Slice (x, zero, begin, at)
        y = Concat <axis: int = @axis> (a, b)
    }""",
    # (n, i, j, k, c) to (windows, tokens, c); split: (n, i/a, a, j/b, b, k/c, c, channels)
    "WindowPartition": """(x, split, merged) => (y) {
        s = Reshape (x, split)
        t = Transpose <perm: ints = [0, 1, 3, 5, 2, 4, 6, 7]> (s)
        y = Reshape (t, merged)
    }""",
    # the inverse of WindowPartition
    "WindowReverse": """(x, split, merged) => (y) {
        s = Reshape (x, split)
        t = Transpose <perm: ints = [0, 1, 4, 2, 5, 3, 6, 7]> (s)
        y = Reshape (t, merged)
    }""",
}


def provide(model: ir.Model, name: str) -> bool:
    """Adds a function to the model where it is not there yet; False where its operator set is too old."""
    opset = int(model.graph.opset_imports.get("", 0))
    if opset < OLDEST:
        return False
    if (DOMAIN, name, "") not in model.functions:
        function = ir.serde.deserialize_function(definition(name, opset))
        model.functions[function.identifier()] = function
    model.graph.opset_imports.setdefault(DOMAIN, 1)
    return True


def definition(name: str, opset: int) -> onnx.FunctionProto:
    """The function's body in one version of the standard operators."""
    text = f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">\n{name} {_BODIES[name]}'
    made: onnx.FunctionProto = parser.parse_function(text)
    return made


NAMES = tuple(_BODIES)
