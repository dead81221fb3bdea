"""Norm statistics in torch: sums of a tensor, and the normalisation that follows from sums."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from wetread.engines.cuda.operations.base import Tensor, activate, wide
from wetread.engines.cuda.program import Json


def voxels_of(x: Tensor) -> int:
    """Values of one channel in one window of (N, C, *space)."""
    return math.prod(x.shape[2:])


def moments(sums: Tensor, voxels: int, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, equal in a group: two float64 [N, C].

    Args:
        sums: float64 [replicas, N, C, 2].
        voxels: values of a channel.
        groups: number of groups of channels that share their statistics.
    """
    total = sums.sum(0)
    n, c = total.shape[:2]
    of_group = total.reshape(n, groups, c // groups, 2).sum(2) / (voxels * (c // groups))
    mean, square = of_group.repeat_interleave(c // groups, 1).unbind(-1)
    return mean, (square - mean * mean).clamp_min(0.0)


def along_channels(values: Tensor, like: Tensor) -> Tensor:
    """[C] or [N, C] as it multiplies (N, C, *space)."""
    row = values[None] if values.ndim == 1 else values
    return row.reshape(*row.shape, *([1] * (like.ndim - 2)))


def normalised(
    x: Tensor, sums: Tensor, gamma: Tensor | None, beta: Tensor | None, norm: Mapping[str, Json]
) -> Tensor:
    """The norm of x from its sums, before any activation, in float32 or float64 (as `wide` gives x)."""
    value = wide(x)
    mean, variance = moments(sums, voxels_of(x), int(norm["groups"]))
    rstd = (variance + float(norm["eps"])).rsqrt()
    value = (value - along_channels(mean, x).to(value.dtype)) * along_channels(rstd, x).to(value.dtype)
    if gamma is not None:
        value = value * along_channels(gamma, x).to(value.dtype)
    return value if beta is None else value + along_channels(beta, x).to(value.dtype)


def normalised_narrow(
    x: Tensor, sums: Tensor, gamma: Tensor | None, beta: Tensor | None, norm: Mapping[str, Json]
) -> Tensor:
    """As `normalised`, by the library's batch norm in x's own type (parameters stay float32)."""
    mean, variance = moments(sums, voxels_of(x), int(norm["groups"]))
    parts = [
        torch.nn.functional.batch_norm(
            x[n : n + 1], mean[n].float(), variance[n].float(), gamma, beta, False, 0.0, float(norm["eps"])
        )
        for n in range(x.shape[0])
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def on_load(
    x: Tensor, sums: Tensor, gamma: Tensor | None, beta: Tensor | None, norm: Mapping[str, Json]
) -> Tensor:
    """Norm and activation as a consumer applies them while it loads x; wide."""
    return activate(normalised(x, sums, gamma, beta, norm), norm["activation"])


def add_sums(sums: Tensor, value: Tensor) -> None:
    """Adds sum and sum of squares of (N, C, *space) to float64 [replicas, N, C, 2], in float64."""
    wide_value = value.double()
    space = tuple(range(2, value.ndim))
    sums[0, ..., 0] += wide_value.sum(space)
    sums[0, ..., 1] += wide_value.square().sum(space)


def add_sums_narrow(sums: Tensor, value: Tensor) -> None:
    """As `add_sums`, adding in float32 about the mean, without a wide copy of the values."""
    space = tuple(range(2, value.ndim))
    voxels = voxels_of(value)
    mean = value.mean(space, dtype=torch.float32)
    centre = mean.to(value.dtype)
    about = torch.linalg.vector_norm(value - along_channels(centre, value), 2, space, dtype=torch.float32)
    total, shift = mean.double() * voxels, centre.double()
    sums[0, ..., 0] += total
    # sum of (y - c)² is known; y² = (y - c)² + 2·c·y - c²
    sums[0, ..., 1] += about.double().square() + 2 * shift * total - voxels * shift * shift
