"""Common subexpressions: two nodes with the same operator, attributes and inputs have the same outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx_ir.passes import common

from wetread.graph.passes.library import LibraryPass


class CommonPass(LibraryPass):
    """Merges equal weights, then equal nodes."""

    name = "common"
    requires = "constants are initialisers"
    ensures = "no two nodes compute the same value"
    verb = "computes what another node computes"

    def passes(self) -> Sequence[Any]:
        """onnx_ir's own; weights are compared in full, not by a hash alone."""
        return [
            common.DeduplicateInitializersPass(size_limit=1 << 16),
            common.CommonSubexpressionEliminationPass(),
        ]
