"""Attention and rotary embedding as ONNX has them."""

from __future__ import annotations

import math

import torch

from wetread.engines.cuda.operations.fallback.registry import Call, Given, Tensor, operator

_TYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}


def _heads(x: Tensor, count: int | None) -> Tensor:
    """(batch, heads, tokens, size) of (batch, tokens, heads · size)."""
    if x.ndim == 4:
        return x
    return x.reshape(x.shape[0], x.shape[1], int(count or 1), -1).transpose(1, 2)


def _mask(call: Call, q: Tensor, keys: int, mask: Given, past: int, lengths: Given) -> Tensor:
    """What is added to the products, -inf where a query may not look; broadcasts to (batch, heads, queries, keys)."""
    queries, device = q.shape[2], q.device
    bias = torch.zeros(queries, keys, dtype=q.dtype, device=device)
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
        missing = keys - mask.shape[-1]
        bias = bias + torch.nn.functional.pad(mask.to(q.dtype), (0, missing), value=-math.inf)
    place = torch.arange(queries, device=device)[:, None]
    by_length = lengths is not None and not past
    place = place + (lengths.reshape(-1, 1, 1, 1) - queries if by_length else past)  # type: ignore[union-attr]
    key = torch.arange(keys, device=device)
    left, right = int(call.get("left_window_size", -1)), int(call.get("right_window_size", -1))
    if call.get("is_causal", 0):
        bias = bias.masked_fill(key > place, -math.inf)
    if left >= 0:
        bias = bias.masked_fill(place - key > left, -math.inf)
    if right >= 0:
        bias = bias.masked_fill(key - place > right, -math.inf)
    if lengths is not None:
        bias = bias.masked_fill(key >= lengths.reshape(-1, 1, 1, 1), -math.inf)
    return bias


@operator("Attention")
def attention(
    call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Given = None, past_key: Given = None,
    past_value: Given = None, lengths: Given = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Softmax of scaled products with biases, times values; keys, values and products as further outputs."""
    flat = q.ndim == 3
    q = _heads(q, call.get("q_num_heads"))
    k, v = (_heads(x, call.get("kv_num_heads")) for x in (k, v))
    past = 0 if past_key is None else past_key.shape[2]
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    present = (k, v)
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scale = float(call.get("scale") or 1 / math.sqrt(q.shape[3]))
    shown = products = (q * math.sqrt(scale)) @ (k * math.sqrt(scale)).mT
    mode, cap = int(call.get("qk_matmul_output_mode", 0)), float(call.get("softcap", 0.0))
    if cap > 0:
        products = torch.tanh(products / cap) * cap
        shown = products if mode == 1 else shown
    bias = _mask(call, q, k.shape[2], mask, past, lengths)
    products = products + bias
    if mode == 2:
        shown = products
    shares = (
        products.to(_TYPES.get(int(call.get("softmax_precision", 0)), products.dtype)).softmax(-1).to(q.dtype)
    )
    # a query that may look nowhere gives zero, where a softmax would give NaN
    nowhere = (bias == -math.inf).all(-1, keepdim=True)
    shares = torch.where(nowhere, torch.zeros_like(shares), shares)
    if mode == 3:
        shown = shares
    y = shares @ v
    y = y.transpose(1, 2).flatten(2) if flat else y
    return y, *present, shown


@operator("RotaryEmbedding")
def rotary(call: Call, x: Tensor, cos: Tensor, sin: Tensor, places: Given = None) -> Tensor:
    """Pairs of features turned by an angle that grows with the place."""
    flat, shape = x.ndim == 3, x.shape
    x = _heads(x, call.get("num_heads"))
    if places is not None:
        cos, sin = cos[places.long()], sin[places.long()]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned = int(call.get("rotary_embedding_dim", 0)) or x.shape[-1]
    part, rest = x[..., :turned], x[..., turned:]
    if call.get("interleaved", 0):
        a, b = part[..., 0::2], part[..., 1::2]
        part = torch.stack([cos * a - sin * b, sin * a + cos * b], -1).flatten(-2)
    else:
        a, b = part.chunk(2, -1)
        part = torch.cat([cos * a - sin * b, sin * a + cos * b], -1)
    y = torch.cat([part, rest], -1)
    return y.transpose(1, 2).reshape(shape) if flat else y


@operator("SwiGLU", types="wide")
def swiglu(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """A times its logistic function, times b."""
    return a * torch.sigmoid(a * float(call.get("alpha", 1.0))) * b
