"""Passes and rules of onnx_ir and onnxscript as passes of ours: their sites are reported, their results checked."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import onnx_ir as ir

from wetread.graph.passes.base import Pass
from wetread.graph.passes.network import Network


class LibraryPass(Pass):
    """A pass of onnx_ir; a site is each node that it removed.

    Attributes:
        verb: what it does to a node, for the reason.
    """

    verb: ClassVar[str] = "removed"

    @abstractmethod
    def passes(self) -> Sequence[Any]:
        """Fresh instances of the library's passes."""

    def run(self, network: Network) -> None:
        """Runs the library's passes and reports the nodes that are gone."""
        before = list(network.graph)
        with quiet():
            for step in self.passes():
                step(network.model)
        left = set(network.graph)
        for node in before:
            if node not in left:
                network.applied([node], f"{node.op_type} {self.verb}")


class RulePass(Pass):
    """Rewrite rules of onnxscript; a site is each match of a rule's pattern.

    Attributes:
        reason: what an applied rule did.
        silent: reports nothing for matches that the rule's condition refuses.
    """

    reason: ClassVar[str] = ""
    silent: ClassVar[bool] = False

    @abstractmethod
    def rules(self) -> Sequence[Any]:
        """The library's rules, `onnxscript.rewriter.RewriteRule`."""

    def run(self, network: Network) -> None:
        """Tries every rule at every node, and again where one was applied."""
        rules = self.rules()
        again = True
        with quiet():
            while again:
                again = sum(self._try(network, node, rules) for node in network.nodes()) > 0

    def _try(self, network: Network, node: ir.Node, rules: Sequence[Any]) -> bool:
        from onnxscript.rewriter import MatchingTracer, MatchStatus

        for rule in rules:
            tracer = MatchingTracer()
            found = rule.try_rewrite(network.model, network.graph, node, tracer=tracer)
            if found is not None:
                self._apply(network, node, rule, found)
                return True
            for info in tracer.best_matches_map.get(rule, []):
                if info.status == MatchStatus.CONDITION_FAILED and not self.silent:
                    self._decline(network, info.match_result)
        return False

    def _decline(self, network: Network, match: Any) -> None:
        names = tuple(str(node.name) for node in match.nodes)
        if all(site.nodes != names for site in network.sites):
            network.declined(match.nodes, match.reason or "the rule's condition does not hold")

    def _apply(self, network: Network, node: ir.Node, rule: Any, found: Any) -> None:
        graph, old = network.graph, list(found.match.nodes)
        network.applied(old, self.reason)
        for value in found.new_initializers:
            graph.initializers[value.name] = value
        for made in found.new_nodes:  # a rewritten node keeps its name
            made.name = next((n.name for n in old if n.op_type == made.op_type), made.name or node.name)
        ir.convenience.replace_nodes_and_values(
            graph,
            node,
            old if rule.remove_nodes else [],
            found.new_nodes,
            found.match.outputs,
            found.new_outputs,
        )
        if not rule.remove_nodes:  # else the old nodes would match again
            network.prune(node)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the libraries' progress messages out of the log of whoever calls."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
