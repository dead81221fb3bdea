"""Nodes, weights and functions that no output needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx_ir.passes import common

from wetread.graph.passes.library import LibraryPass


def unused() -> list[Any]:
    """The passes of onnx_ir, fresh; the driver runs them after every pass, too."""
    functions: Any = common.RemoveUnusedFunctionsPass
    return [common.RemoveUnusedNodesPass(), functions()]


class UnusedPass(LibraryPass):
    """Removes what no output reads."""

    name = "unused"
    ensures = "every node and weight is needed by an output"

    def passes(self) -> Sequence[Any]:
        """onnx_ir's own."""
        return unused()
