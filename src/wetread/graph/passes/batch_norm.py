"""BatchNorm into the convolution, transposed convolution or matrix product before it.

With s = γ / sqrt(σ² + ε) per channel:  BN(W∗x + b) = (s·W)∗x + (s·(b − μ) + β).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from wetread.graph.passes.before import affine
from wetread.graph.passes.bias import scaled
from wetread.graph.passes.library import RulePass
from wetread.graph.passes.network import Network, constant, only_user, producer


class BatchNormPass(RulePass):
    """onnxscript's rules for Conv, ConvTranspose and Gemm.

    They refuse layers that share weights with others, as exporters let layers do whose weights are equal (biases
    of zero, say); such a convolution gets weights of its own here.
    """

    name = "batch_norm"
    requires = "Dropout removed, constants are initialisers"
    ensures = "a BatchNormalization that stays does not follow a convolution that it alone reads"
    reason = "BatchNormalization folded into the weights before it"

    def rules(self) -> Sequence[Any]:
        """The library's rules."""
        from onnxscript.rewriter.rules import common

        return [
            common.fuse_batchnorm_into_conv_rule,
            common.fuse_batchnorm_into_conv_transpose_rule,
            common.fuse_batchnorm_into_gemm_rule,
        ]

    def _decline(self, network: Network, match: Any) -> None:
        norm = next((node for node in match.nodes if node.op_type == "BatchNormalization"), None)
        if norm is None or not _fold_shared(network, norm):
            super()._decline(network, match)


def _fold_shared(network: Network, norm: ir.Node) -> bool:
    """Folds into a convolution whose weights others read, too; False where something is computed."""
    conv = producer(norm.inputs[0], "Conv", "ConvTranspose")
    if conv is None or norm.graph is None or not only_user(conv.outputs[0]):
        return False
    weights, mean = constant(conv.inputs[1]), constant(norm.inputs[3])
    computed = any(value is not None and constant(value) is None for value in conv.inputs[2:])
    if weights is None or mean is None or computed:
        return False
    found = affine(norm, mean.size, weights.ndim)
    if found is None:
        return False
    made = scaled(network, conv, found[1], found[2])
    network.applied(
        [conv, norm], "BatchNormalization folded into a copy of the weights, which others read, too"
    )
    network.replace(norm.outputs[0], made.outputs[0])
    return True
