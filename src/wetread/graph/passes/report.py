"""What the passes did: plain data, for the build's report and ``wetread inspect``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Site:
    """One place where a pass could act.

    Attributes:
        nodes: names of the nodes that were matched, those of the graph before the pass.
        applied: whether they were rewritten.
        reason: what was done, or why nothing was.
    """

    nodes: tuple[str, ...]
    applied: bool
    reason: str


@dataclass(frozen=True)
class PassReport:
    """One pass over the network.

    Attributes:
        name: of the pass.
        nodes_before, nodes_after: counted around it; a call of a function is one node.
        sites: in the order of the graph.
        worst_error: largest error of a rewritten value on random inputs, relative to the largest magnitude of
            the value, in float64; 0 where all are equal by structure, None where nothing changed or nothing
            was checked.
    """

    name: str
    nodes_before: int
    nodes_after: int
    sites: tuple[Site, ...] = ()
    worst_error: float | None = None

    @property
    def applied(self) -> int:
        """Number of sites that were rewritten."""
        return sum(site.applied for site in self.sites)


@dataclass(frozen=True)
class GraphReport:
    """All passes over a network.

    Attributes:
        passes: in their order.
        nodes_before, nodes_after: of the whole network.
        operators_before, operators_after: how many nodes of each operator.
        error: largest error of an output of the whole network on one random window, relative to the output's
            largest magnitude, in float64; None where it was not checked.
    """

    passes: tuple[PassReport, ...]
    nodes_before: int
    nodes_after: int
    operators_before: dict[str, int]
    operators_after: dict[str, int]
    error: float | None = None

    def __getitem__(self, name: str) -> PassReport:
        """The last run of a pass that changed or declined something; else its last run.

        Raises:
            KeyError: no pass has this name.
        """
        runs = [entry for entry in self.passes if entry.name == name]
        if not runs:
            raise KeyError(name)
        return next((entry for entry in reversed(runs) if entry.sites), runs[-1])

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary, for JSON."""
        return asdict(self)
