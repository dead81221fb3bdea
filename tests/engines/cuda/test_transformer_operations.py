"""Linear layers, LayerNorm, softmax and attention: reference, library and own kernels against float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.engines.cuda.one_step import OneStep, error  # noqa: E402
from wetread.engines.cuda.operations.attention import partition, reverse  # noqa: E402
from wetread.engines.cuda.program import TensorSpec, row_major  # noqa: E402

pytestmark = pytest.mark.peer

TOLERANCE = {"float32": 2e-6, "float16": 1.5e-3, "bfloat16": 1.2e-2}
"""Relative L2: rounding of the result and of the weights with gamma in them."""


def rand(*shape, seed=0, scale=1.0, dtype="float32"):
    g = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(*shape, generator=g) * scale).to(getattr(torch, dtype))


def dense(shape, dtype):
    return TensorSpec(tuple(shape), dtype, row_major(shape))


def check(one, expected, dtype, kernels=True, role="y", most=3):
    """Reference, library and the first kernels against float64."""
    assert error(one.reference()[role], expected) < TOLERANCE[dtype]
    assert error(one.library()[role], expected) < 2 * TOLERANCE[dtype]
    found = one.kernels()
    assert bool(found) == kernels
    for kernel in found[:most]:
        assert error(one.kernel(kernel)[role], expected) < 2 * TOLERANCE[dtype], kernel


def matmul(a, weights, out, attributes, dtype, residual=None):
    inputs = {"a": a} if residual is None else {"a": a, "residual": residual}
    specs = {role: dense(t.shape, dtype) for role, t in inputs.items()} | {"y": dense(out, dtype)}
    return OneStep("matmul", inputs, weights, {"y": (out, dtype)}, attributes, specs)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_linear_layer_has_bias_activation_and_residual(dtype):
    m, k, n = 75, 48, 40
    a, r, w, b = rand(m, k, dtype=dtype), rand(m, n, seed=1, dtype=dtype), rand(k, n, dtype=dtype), rand(n)
    exact = a.double() @ w.double() + b.double() + r.double()
    one = matmul(a, {"b": w, "bias": b}, (m, n), {"activation": {"name": "relu"}}, dtype, r)
    check(one, exact.relu(), dtype)


@pytest.mark.parametrize(
    "activation",
    [
        {"name": "gelu"},
        {"name": "gelu", "approximate": "tanh"},
        {"name": "leaky", "slope": 0.1},
        {"name": "sigmoid"},
        {"name": "tanh"},
        {"name": "silu"},
        {"name": "clip", "low": -0.5, "high": None},
    ],
)
def test_each_activation_of_the_kernel_is_exact(activation):
    a, w = rand(40, 24), rand(24, 33)
    one = matmul(a, {"b": w}, (40, 33), {"activation": activation}, "float32")
    from wetread.engines.cuda.operations.base import activate

    check(one, activate(a.double() @ w.double(), activation), "float32", most=1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_norm_before_the_product_does_not_cancel(dtype):
    """Rows of mean 10 and SD 1: the kernel takes the mean out of the product after it."""
    m, k, n = 40, 96, 48
    a = (rand(m, k) + 10 * rand(m, 1, seed=3)).to(getattr(torch, dtype))
    w, gamma, beta, bias = rand(k, n, dtype=dtype), 1 + 0.2 * rand(k, seed=4), rand(k, seed=5), rand(n)
    normed = torch.nn.functional.layer_norm(a.double(), (k,), gamma.double(), beta.double(), 1e-5)
    exact = normed @ w.double() + bias.double()
    one = matmul(
        a, {"b": w, "bias": bias, "gamma": gamma, "beta": beta}, (m, n), {"norm": {"eps": 1e-5}}, dtype
    )
    tolerance = {"float32": 1e-5, "float16": 3e-3}[dtype]
    for kernel in one.kernels()[:2]:
        assert error(one.kernel(kernel)["y"], exact) < tolerance
    assert error(one.reference()["y"], exact) < TOLERANCE[dtype]


def test_patches_are_merged_by_a_view():
    """Eight neighbours side by side as K, normalised together: (N, D/2, H/2, W/2, 2, 2, 2, C)."""
    n, d, h, w, c, out = 1, 4, 6, 4, 16, 32
    x = rand(n, d, h, w, c, dtype="float16")
    patches = x.reshape(n, d // 2, 2, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4, 6, 7)
    spec = TensorSpec(tuple(patches.shape), "float16", tuple(patches.stride()))
    weight, gamma = rand(8 * c, out, dtype="float16"), 1 + 0.1 * rand(8 * c, seed=1)
    rows = patches.shape[:4]
    one = OneStep(
        "matmul", {"a": patches}, {"b": weight, "gamma": gamma}, {"y": ((*rows, out), "float16")},
        {"contract": 4, "norm": {"eps": 1e-5}}, {"a": spec, "y": dense((*rows, out), "float16")},
    )  # fmt: skip
    exact = torch.nn.functional.layer_norm(patches.double().flatten(4), (8 * c,), gamma.double(), None, 1e-5)
    check(one, exact @ weight.double(), "float16")


def test_a_patch_embedding_of_one_channel_has_a_small_k():
    x = rand(1, 1, 4, 4, 8, dtype="float16")
    patches = x.reshape(1, 1, 2, 2, 2, 2, 4, 2).permute(0, 2, 4, 6, 1, 3, 5, 7)
    spec = TensorSpec(tuple(patches.shape), "float16", tuple(patches.stride()))
    weight, bias = rand(8, 48, dtype="float16"), rand(48)
    y = TensorSpec((1, 2, 2, 4, 48), "float16", row_major((1, 2, 2, 4, 48)))
    one = OneStep(
        "matmul", {"a": patches}, {"b": weight, "bias": bias}, {"y": (y.shape, "float16")}, {"contract": 4},
        {"a": spec, "y": y},
    )  # fmt: skip
    exact = patches.double().flatten(4) @ weight.double() + bias.double()
    check(one, exact, "float16")


@pytest.mark.parametrize("norm", [True, False])
def test_two_linear_layers_in_one(norm):
    """All own kernels: one program for both layers, and both layers one after the other."""
    m, k, h, n, dtype = 75, 48, 80, 24, "float16"
    a, r = rand(m, k, dtype=dtype), rand(m, n, seed=1, dtype=dtype)
    w1, w2, bias1, bias2 = rand(k, h, dtype=dtype, scale=0.2), rand(h, n, dtype=dtype), rand(h), rand(n)
    weights = {"b1": w1, "bias1": bias1, "b2": w2, "bias2": bias2}
    x = a.double()
    if norm:
        weights |= {"gamma": 1 + 0.2 * rand(k, seed=4), "beta": rand(k, seed=5)}
        x = torch.nn.functional.layer_norm(x, (k,), weights["gamma"].double(), weights["beta"].double(), 1e-5)
    hidden = torch.nn.functional.gelu(x @ w1.double() + bias1.double())
    exact = hidden @ w2.double() + bias2.double() + r.double()
    specs = {"a": dense(a.shape, dtype), "residual": dense(r.shape, dtype), "y": dense((m, n), dtype)}
    attributes = {"norm": {"eps": 1e-5} if norm else None, "activation": {"name": "gelu"}, "inverse": 1.0}
    one = OneStep("mlp", {"a": a, "residual": r}, weights, {"y": ((m, n), dtype)}, attributes, specs)
    assert {kernel["family"] for kernel in one.kernels()} == {"mlp", "pair"}
    check(one, exact, dtype, most=8)


def test_products_of_two_tensors_are_the_librarys():
    a, b = rand(2, 3, 5, 8), rand(2, 3, 8, 7)
    specs = {
        "a": dense(a.shape, "float32"),
        "b": dense(b.shape, "float32"),
        "y": dense((2, 3, 5, 7), "float32"),
    }
    one = OneStep("matmul", {"a": a, "b": b}, {}, {"y": ((2, 3, 5, 7), "float32")}, {}, specs)
    check(one, a.double() @ b.double(), "float32", kernels=False)


def test_int8_operands_are_multiplied_exactly():
    g = torch.Generator().manual_seed(0)
    a, w = (torch.randint(-127, 128, s, generator=g, dtype=torch.int8) for s in ((50, 64), (64, 48)))
    scale, bias = rand(48).abs() * 1e-4, rand(48)
    y = dense((50, 48), "int8")
    one = OneStep(
        "matmul", {"a": a}, {"b": w, "scale": scale, "bias": bias}, {"y": ((50, 48), "int8")},
        {"inverse": 4.0}, {"a": dense(a.shape, "int8"), "y": y},
    )  # fmt: skip
    exact = ((a.double() @ w.double() * scale.double() + bias.double()) * 4.0).round().clamp(-127, 127)
    for found in (one.reference()["y"], one.kernel(one.kernels()[0])["y"]):
        assert (found.double() - exact).abs().max() <= 1  # a half rounds either way in float32
        assert (found.double() != exact).double().mean() < 1e-2


@pytest.mark.parametrize(
    ("dtype", "axes", "more"), [("float32", 1, False), ("float16", 1, True), ("float16", 2, True)]
)
def test_layer_norm_of_a_sum(dtype, axes, more):
    shape = (3, 7, 6, 40)
    split = len(shape) - axes
    x, r = rand(*shape, dtype=dtype), rand(*shape, seed=1, dtype=dtype)
    gamma, beta = 1 + 0.2 * rand(*shape[split:]), rand(*shape[split:], seed=2)
    exact_sum = x.double() + r.double() if more else x.double()
    exact = torch.nn.functional.layer_norm(exact_sum, shape[split:], gamma.double(), beta.double(), 1e-5)
    inputs = {"x": x, "residual": r} if more else {"x": x}
    outputs = {"y": (shape, dtype)} | ({"added": (shape, dtype)} if more else {})
    specs = {role: dense(shape, dtype) for role in (*inputs, *outputs)}
    one = OneStep(
        "layer_norm", inputs, {"gamma": gamma, "beta": beta}, outputs, {"axes": axes, "eps": 1e-5}, specs
    )
    check(one, exact, dtype)
    if more:
        check(one, exact_sum, dtype, role="added")


@pytest.mark.parametrize(("axis", "log"), [(1, False), (3, False), (2, True)])
def test_softmax_along_any_axis(axis, log):
    x = rand(2, 3, 5, 7, scale=4.0)
    one = OneStep("softmax", {"x": x}, {}, {"y": (x.shape, "float32")}, {"axis": axis, "log": log})
    exact = torch.log_softmax(x.double(), axis) if log else torch.softmax(x.double(), axis)
    check(one, exact, "float32")


# attention


def exact_attention(q, k, v, scale, added=None):
    s = q.double() @ k.double().transpose(-1, -2) * scale
    return torch.softmax(s if added is None else s + added.double(), -1) @ v.double()


@pytest.mark.parametrize(("dtype", "features", "queries"), [("float32", 64, 30), ("float16", 24, 75)])
def test_whole_attention_reads_views_of_one_projection(dtype, features, queries):
    b, heads, keys = 2, 3, 75
    q, k, v = (rand(b, heads, t, features, seed=i, dtype=dtype) for i, t in enumerate((queries, keys, keys)))
    # tokens before heads, as a projection leaves them
    specs = {
        role: TensorSpec(
            tuple(t.shape), dtype, (t.shape[2] * heads * features, features, heads * features, 1)
        )
        for role, t in (("q", q), ("k", k), ("v", v), ("y", q))
    }
    one = OneStep("attention", {"q": q, "k": k, "v": v}, {}, {"y": (q.shape, dtype)}, {"scale": 0.3}, specs)
    check(one, exact_attention(q, k, v, 0.3), dtype)


def test_whole_attention_with_bias_and_a_mask_for_each_window():
    windows, heads, t, f = 3, 2, 20, 16
    q, k, v = (rand(2 * windows, heads, t, f, seed=i) for i in range(3))
    bias, mask = rand(1, heads, t, t), torch.where(rand(windows, t, t) > 1, float("-inf"), 0.0)
    mask[:, :, 0] = 0
    one = OneStep(
        "attention", {"q": q, "k": k, "v": v}, {"bias": bias, "mask": mask}, {"y": (q.shape, "float32")},
        {"scale": 0.25}, {r: dense(q.shape, "float32") for r in ("q", "k", "v", "y")},
    )  # fmt: skip
    added = bias.double() + mask.double().repeat(2, 1, 1)[:, None]
    check(one, exact_attention(q, k, v, 0.25, added), "float32")


def regions_of(padded, size, shift):
    """Swin's regions, numbered as MONAI's compute_mask does; [windows, tokens]."""
    image = torch.zeros(1, *padded, 1, 1)
    cuts = [
        (slice(-s), slice(-s, -h), slice(-h, None)) if h else (slice(None),)
        for s, h in zip(size, shift, strict=True)
    ]
    for number, (d, h, w) in enumerate(itertools.product(*cuts)):
        image[:, d, h, w] = number
    plain = {"size": size, "padded": padded, "shift": (0, 0, 0)}
    return partition(image, plain).reshape(-1, int(np.prod(size))).to(torch.int32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("space", "size", "shift"),
    [((6, 7, 8), (4, 3, 4), (2, 1, 2)), ((6, 6, 6), (3, 3, 3), (0, 0, 0)), ((5, 3, 7), (2, 3, 4), (1, 0, 3))],
)
def test_shifted_windows_are_read_from_the_map(dtype, space, size, shift):
    heads, f, n = 3, 16, 2
    padded = tuple(-(-s // w) * w for s, w in zip(space, size, strict=True))
    qkv = rand(n, *space, 3 * heads * f, dtype=dtype)
    fill, t = rand(3 * heads * f, seed=9), int(np.prod(size))
    bias, regions = rand(1, heads, t, t, seed=3), regions_of(padded, size, shift)
    windows = {"size": list(size), "padded": list(padded), "shift": list(shift)}
    q, k, v = qkv.reshape(n, *space, 3, heads, f).unbind(4)
    one = OneStep(
        "attention", {"q": q, "k": k, "v": v}, {"bias": bias, "fill": fill, "regions": regions},
        {"y": (q.shape, dtype)}, {"scale": 0.25, "windows": windows, "apart": -100.0},
        {r: dense(q.shape, dtype) for r in ("q", "k", "v", "y")},
    )  # fmt: skip
    cut = [
        partition(x.double(), windows, part.to(x.dtype).double())
        for x, part in zip((q, k, v), fill.reshape(3, heads, f), strict=True)
    ]
    apart = torch.where(regions[:, :, None] == regions[:, None, :], 0.0, -100.0).double()
    added = bias.double() + apart.repeat(n, 1, 1)[:, None]
    exact = reverse(exact_attention(*cut, 0.25, added), windows, q)
    check(one, exact, dtype)
