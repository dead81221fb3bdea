"""Constant nodes become initialisers, so that every pass finds constants in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx_ir.passes import common

from wetread.graph.passes.library import LibraryPass


class LiftPass(LibraryPass):
    """Turns Constant nodes into initialisers."""

    name = "lift"
    ensures = "no Constant node but for an output of the network"
    verb = "made an initialiser"

    def passes(self) -> Sequence[Any]:
        """onnx_ir's own."""
        return [common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)]
