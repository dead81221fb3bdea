"""Passes: rewrites of a network that keep what it computes, each one checked."""

from __future__ import annotations

from collections.abc import Sequence

from wetread.graph.graph import Graph
from wetread.graph.passes import driver
from wetread.graph.passes.activation import ActivationPass
from wetread.graph.passes.attention import AttentionPass
from wetread.graph.passes.base import Pass
from wetread.graph.passes.batch_norm import BatchNormPass
from wetread.graph.passes.before import BeforePass
from wetread.graph.passes.bias import BiasPass
from wetread.graph.passes.common import CommonPass
from wetread.graph.passes.dropout import DropoutPass
from wetread.graph.passes.fold import FoldPass
from wetread.graph.passes.group_norm import GroupNormPass
from wetread.graph.passes.identity import IdentityPass
from wetread.graph.passes.lift import LiftPass
from wetread.graph.passes.network import Network
from wetread.graph.passes.norm import NormPass
from wetread.graph.passes.pad import PadPass
from wetread.graph.passes.projections import ProjectionsPass
from wetread.graph.passes.report import GraphReport, PassReport, Site
from wetread.graph.passes.shapes import ShapesPass
from wetread.graph.passes.unused import UnusedPass
from wetread.graph.passes.windows import WindowsPass

DEFAULT_PASSES: tuple[Pass, ...] = (
    UnusedPass(), LiftPass(), DropoutPass(), IdentityPass(), ShapesPass(), FoldPass(), LiftPass(), IdentityPass(),
    CommonPass(), PadPass(), BatchNormPass(), BiasPass(), BeforePass(), NormPass(), GroupNormPass(),
    ActivationPass(), ProjectionsPass(), AttentionPass(), WindowsPass(), CommonPass(), UnusedPass(),
)  # fmt: skip


def optimise(
    graph: Graph,
    *,
    window: Sequence[int] | None = None,
    outputs: Sequence[str] | None = None,
    check: bool = True,
    passes: Sequence[Pass] = DEFAULT_PASSES,
) -> tuple[Graph, GraphReport]:
    """Rewrites a network with the passes; see `wetread.graph.passes.driver.optimise`."""
    return driver.optimise(graph, window=window, outputs=outputs, check=check, passes=passes)


__all__ = ["DEFAULT_PASSES", "GraphReport", "Network", "Pass", "PassReport", "Site", "optimise"]
