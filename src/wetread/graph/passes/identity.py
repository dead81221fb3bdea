"""Identity nodes: y = x, so readers of y read x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx_ir.passes import common

from wetread.graph.passes.library import LibraryPass


class IdentityPass(LibraryPass):
    """Removes Identity nodes; one that joins an input to an output of the network stays."""

    name = "identity"
    ensures = "no Identity node but between the network's interface"

    def passes(self) -> Sequence[Any]:
        """onnx_ir's own."""
        return [common.IdentityEliminationPass()]
