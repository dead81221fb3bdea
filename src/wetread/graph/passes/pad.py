"""Zero padding into the convolution after it: Conv_p(Pad_q(x)) = Conv_{p+q}(x) on spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wetread.graph.passes.library import RulePass


class PadPass(RulePass):
    """onnxscript's rules; padding by another value than zero, or of channels, is declined."""

    name = "pad"
    requires = "shapes inferred, constants are initialisers"
    ensures = "no convolution reads a zero padding of spatial axes"
    reason = "padding moved into the convolution"

    def rules(self) -> Sequence[Any]:
        """The library's rules."""
        from onnxscript.rewriter.rules import common

        return [common.fuse_pad_into_conv_rule]
