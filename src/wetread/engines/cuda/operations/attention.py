"""Attention: softmax(scale · q kᵀ + bias + mask) v, whole or in shifted windows of a map.

Windows (Liu et al. 2021) are read from the map and written to it: padding, cyclic shift, partition and their
inverses are how the tokens of a window are addressed, and no step of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from wetread.engines.cuda.operations.base import Arrays, Kernel, Operation, Target, Tensor, Work, store, wide
from wetread.engines.cuda.program import Json, Program, Step
from wetread.kernels.attention import AttentionTile, Masks, Windows, attention, pack_bias, pack_regions

CHUNK = 32
"""Windows that the reference holds scores of at once."""


class Attention(Operation):
    """y = softmax(scale · q kᵀ + bias + mask) v for each head.

    Whole: q (B, heads, Tq, F), k (B, heads, Tk, F), v (B, heads, Tk, F), y like q, any strides.

    In windows: q, k, v and y are (N, D, H, W, heads, F), views of maps. Window (i, j, k) of `size` holds
    the tokens of the map that was padded at its ends to `padded`, then rolled by −`shift`. Windows are numbered
    with k fastest, tokens likewise. Where the padding was, tokens are `fill`; nothing is written there.

    Roles:
        q, k, v: see above.
        fill: [3 · heads · F], q, k and v of a padded token (the bias of their projection); zeros where absent.
        bias: (1 or B, 1 or heads, Tq, Tk); in windows (1, 1 or heads, T, T).
        regions: (windows, T) integers; tokens of different regions have `apart` added to their score.
        mask: (windows, Tq, Tk), added to the scores; batch b of whole attention takes number b mod windows.
        y: see above.

    Attributes: scale; windows: None or {size, padded, shift}, each along D, H, W; apart; tf32: float32
    operands may be rounded to TF32.
    """

    name = "attention"

    def reference(self, step: Step, at: Arrays) -> None:
        """In float32 or float64, some windows at once."""
        self._run(step, at, wide, _softmax_product)

    def library(self, step: Step, at: Arrays) -> None:
        """PyTorch's scaled dot product attention on windows that are cut out."""
        if at.inputs["q"].dtype not in (torch.float16, torch.bfloat16, torch.float32):
            self.reference(step, at)
            return
        self._run(step, at, lambda t: t, _library_product)

    def _run(
        self, step: Step, at: Arrays, kind: Callable[[Tensor], Tensor], product: Callable[..., Tensor]
    ) -> None:
        q, k, v = (kind(at.inputs[role]) for role in ("q", "k", "v"))
        y, windows = at.outputs["y"], step.attributes.get("windows")
        added = _Added(at, q.dtype, float(step.attributes.get("apart", 0.0)))
        scale = float(step.attributes["scale"])
        if windows is None:
            store(product(q, k, v, added.rows(0, q.shape[0], added.windows or 1), scale), y)
            return
        fills = _fills(at.inputs.get("fill"), q)
        cut = [partition(t, windows, fill) for t, fill in zip((q, k, v), fills, strict=True)]
        count = cut[0].shape[0] // q.shape[0]
        parts = [
            product(
                *(t[i : i + CHUNK] for t in cut), added.rows(i, min(CHUNK, len(cut[0]) - i), count), scale
            )
            for i in range(0, len(cut[0]), CHUNK)
        ]
        store(reverse(torch.cat(parts), windows, q), y)

    def kernels(self, step: Step, program: Program, target: Target) -> list[Kernel]:
        """Tiles of queries and keys."""
        spec = program.spec(step.inputs["q"])
        kinds = {program.spec(step.inputs[role]).dtype for role in ("q", "k", "v")}
        features = spec.shape[-1]
        if not target.triton or len(kinds) != 1 or kinds.pop() not in ("float16", "bfloat16", "float32"):
            return []
        if features > 256 or ("bias" in step.inputs and program.spec(step.inputs["bias"]).shape[0] != 1):
            return []
        _, keys = _tokens(step, program)
        tiles = [t for t in _TILES if t[0] <= 2 * keys and t[1] <= 2 * keys] or [(16, 32, 2, 2)]
        if target.hopper and "fill" not in step.inputs:  # keys would go to wgmma unfenced, see `matmul.tiles`
            tiles = [(bm, bn, warps, 1 if bm >= 64 else stages) for bm, bn, warps, stages in tiles]
        size = max(16, features) * spec.torch_dtype.itemsize
        fits = [t for t in tiles if not target.shared_bytes or 4 * t[1] * size * t[3] <= target.shared_bytes]
        return [{"family": "flash", "tile": list(t)} for t in fits]

    def prepare(self, step: Step, kernel: Kernel, at: Arrays) -> Callable[[], None]:
        """Packs bias and regions; launches `kernels.attention.attention`."""
        tile = AttentionTile(*kernel["tile"])
        q, k, v, y = (*(at.inputs[r] for r in ("q", "k", "v")), at.outputs["y"])
        found = step.attributes.get("windows")
        windows = None
        if found is not None:
            windows = Windows(*(tuple(found[key]) for key in ("size", "padded", "shift")))
        packed: dict[str, Tensor] = {}
        for role, pack in (("bias", pack_bias), ("mask", pack_bias), ("regions", pack_regions)):
            if role in at.inputs:
                tensor = at.inputs[role]
                key = (role, step.inputs[role], str(q.dtype))
                packed[role] = at.packs.get(key, lambda t=tensor, pack=pack: pack(t, q.dtype))  # type: ignore[misc]
        fill = at.inputs.get("fill")
        masks = Masks(
            packed.get("bias"), packed.get("mask"), packed.get("regions"), float(step.attributes.get("apart", 0.0)),
            fill, bool(step.attributes.get("tf32")),
        )  # fmt: skip
        scale = float(step.attributes["scale"])
        return lambda: attention(q, k, v, y, scale, tile, masks, windows)

    def work(self, step: Step, program: Program) -> Work:
        """Two products of queries, keys and features."""
        y = program.spec(step.outputs["y"])
        _, keys = _tokens(step, program)
        return Work(4 * math.prod(y.shape) * keys, super().work(step, program).bytes)


_TILES = (
    (64, 128, 4, 2), (64, 64, 4, 2), (128, 64, 4, 2), (64, 32, 4, 3), (128, 128, 8, 2), (32, 64, 2, 2),
    (16, 64, 2, 2),
)  # fmt: skip
"""Queries, keys of a step, warps, stages."""


def _tokens(step: Step, program: Program) -> tuple[int, int]:
    """Queries and keys of one product."""
    windows = step.attributes.get("windows")
    if windows is not None:
        tokens = math.prod(windows["size"])
        return tokens, tokens
    return program.spec(step.inputs["q"]).shape[2], program.spec(step.inputs["k"]).shape[2]


class _Added:
    """What is added to scores: bias, mask, regions."""

    def __init__(self, at: Arrays, dtype: torch.dtype, apart: float) -> None:
        self.bias = at.inputs["bias"].to(dtype) if "bias" in at.inputs else None
        self.mask = at.inputs["mask"].to(dtype) if "mask" in at.inputs else None
        self.regions = at.inputs.get("regions")
        self.dtype, self.apart = dtype, apart
        found = self.mask if self.mask is not None else self.regions
        self.windows = None if found is None else int(found.shape[0])

    def rows(self, first: int, count: int, windows: int) -> Tensor | None:
        """For batches first..first + count, where every `windows` of them begin anew."""
        bias = self.bias
        if bias is not None and bias.shape[0] > 1:
            bias = bias[first : first + count]
        if self.windows is None:
            return bias
        if self.mask is not None:
            at = torch.arange(first, first + count, device=self.mask.device) % windows
            more = self.mask[at][:, None]
        else:
            assert self.regions is not None
            at = torch.arange(first, first + count, device=self.regions.device) % windows
            r = self.regions[at]
            more = (r[:, None, :, None] != r[:, None, None, :]).to(self.dtype) * self.apart
        return more if bias is None else bias + more


def _softmax_product(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, scale: float) -> Tensor:
    scores = torch.matmul(q * scale, k.transpose(-1, -2))
    if added is not None:
        scores = scores + added
    return torch.matmul(torch.softmax(scores, -1), v)


def _library_product(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, scale: float) -> Tensor:
    if added is not None:
        added = added.to(q.dtype).expand(q.shape[0], q.shape[1], -1, -1)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)


def _fills(fill: Tensor | None, like: Tensor) -> list[Tensor | None]:
    """Fill of q, k and v as (heads, F)."""
    if fill is None:
        return [None, None, None]
    return [*fill.to(like.dtype).reshape(3, *like.shape[-2:])]


def partition(x: Tensor, windows: Json, fill: Tensor | None = None) -> Tensor:
    """(N, D, H, W, heads, F) as windows (N · windows, heads, tokens, F), padded and shifted."""
    size, padded, shift = (windows[key] for key in ("size", "padded", "shift"))
    n, heads, features = x.shape[0], x.shape[-2], x.shape[-1]
    whole = torch.zeros(n, *padded, heads, features, dtype=x.dtype, device=x.device)
    if fill is not None:
        whole += fill
    whole[:, : x.shape[1], : x.shape[2], : x.shape[3]] = x
    whole = torch.roll(whole, [-s for s in shift], (1, 2, 3))
    grid = [p // s for p, s in zip(padded, size, strict=True)]
    apart = whole.reshape(n, grid[0], size[0], grid[1], size[1], grid[2], size[2], heads, features)
    return apart.permute(0, 1, 3, 5, 7, 2, 4, 6, 8).reshape(-1, heads, math.prod(size), features)


def reverse(parts: Tensor, windows: Json, like: Tensor) -> Tensor:
    """The inverse of `partition`, without what was padded."""
    size, padded, shift = (windows[key] for key in ("size", "padded", "shift"))
    n, heads, features = like.shape[0], like.shape[-2], like.shape[-1]
    grid = [p // s for p, s in zip(padded, size, strict=True)]
    apart = parts.reshape(n, *grid, heads, *size, features).permute(0, 1, 5, 2, 6, 3, 7, 4, 8)
    whole = torch.roll(apart.reshape(n, *padded, heads, features), list(shift), (1, 2, 3))
    return whole[:, : like.shape[1], : like.shape[2], : like.shape[3]]


OPERATIONS = (Attention(),)
