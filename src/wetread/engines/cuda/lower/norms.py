"""Instance and group normalisation: the sums of a tensor, then a pass that applies them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.engines.cuda.lower.lowering import Lowering, handles
from wetread.engines.cuda.program import sums_spec
from wetread.graph.plain import Operation


@handles("InstanceNormalization")
def instance(low: Lowering, node: Operation) -> None:
    """As many groups as channels."""
    gamma, beta = low.constant(node.inputs[1]), low.constant(node.inputs[2])
    if gamma is None or beta is None:
        low.fallback(node)
        return
    _norm(low, node, gamma, beta, low.shape(node.inputs[0])[1])


@handles("GroupNormalization")
def group(low: Lowering, node: Operation) -> None:
    """Scale and bias are per group in operator set 18, per channel from 21 on."""
    gamma, beta = low.constant(node.inputs[1]), low.constant(node.inputs[2])
    groups, channels = int(node.attributes["num_groups"]), low.shape(node.inputs[0])[1]
    if gamma is None or beta is None:
        low.fallback(node)
        return
    if gamma.size != channels:
        gamma, beta = (np.repeat(v.reshape(-1), channels // groups) for v in (gamma, beta))
    _norm(low, node, gamma, beta, groups)


@handles("wetread.GroupNormalization")
def function(low: Lowering, node: Operation) -> None:
    """Our function (x, grouped, unit, zero, scale, bias): the norm of groups, then scale and bias of channels."""
    unit, zero, scale, bias = (low.constant(name) for name in node.inputs[2:6])
    if unit is None or zero is None or scale is None or bias is None:
        raise low.unsupported(node, "its parameters hang on the input")
    channels = low.shape(node.inputs[0])[1]
    each = channels // unit.size
    inner, shift = np.repeat(unit.reshape(-1), each), np.repeat(zero.reshape(-1), each)
    scale, bias = (np.broadcast_to(v.reshape(-1), (channels,)) for v in (scale, bias))
    _norm(low, node, inner * scale, shift * scale + bias, unit.size)


def _norm(low: Lowering, node: Operation, gamma: NDArray[Any], beta: NDArray[Any], groups: int) -> None:
    x = low.value(node.inputs[0])
    batch, channels = low.shape(node.inputs[0])[:2]
    sums = low.fresh(f"{node.outputs[0]}/sums")
    low.program.tensors[sums] = sums_spec(batch, channels)
    roles = {"x": x, "sums": sums}
    if np.any(gamma != 1) or np.any(beta != 0):
        roles["gamma"] = low.weight(f"{node.outputs[0]}/gamma", gamma.reshape(-1), "float32")
        roles["beta"] = low.weight(f"{node.outputs[0]}/beta", beta.reshape(-1), "float32")
    y = low.output(node)
    low.step("stats", f"{node.name}/stats", {"x": x}, {"sums": sums}, {}, [node.name])
    attributes = {
        "eps": float(node.attributes.get("epsilon", 1e-5)), "groups": int(groups), "activation": None,
        "inverse": 1.0,
    }  # fmt: skip
    low.step("norm", node, roles, {"y": y}, attributes)
