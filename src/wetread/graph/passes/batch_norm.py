"""BatchNorm into the convolution, transposed convolution or matrix product before it.

With s = γ / sqrt(σ² + ε) per channel:  BN(W∗x + b) = (s·W)∗x + (s·(b − μ) + β).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wetread.graph.passes.library import RulePass


class BatchNormPass(RulePass):
    """onnxscript's rules for Conv, ConvTranspose and Gemm."""

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
