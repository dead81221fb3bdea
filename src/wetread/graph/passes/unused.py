"""Nodes, weights and functions that no output needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx_ir.passes import common

from wetread.graph.passes.library import LibraryPass


class UnusedPass(LibraryPass):
    """Removes what no output reads."""

    name = "unused"
    ensures = "every node and weight is needed by an output"

    def passes(self) -> Sequence[Any]:
        """onnx_ir's own."""
        return [common.RemoveUnusedNodesPass(), common.RemoveUnusedFunctionsPass()]
