"""The passes in their order, each verified, checked and reported."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from wetread.errors import GraphError
from wetread.graph.evaluate import Evaluator
from wetread.graph.graph import Graph
from wetread.graph.passes import check as checking
from wetread.graph.passes.base import Pass
from wetread.graph.passes.library import quiet
from wetread.graph.passes.network import Network
from wetread.graph.passes.report import GraphReport, PassReport, Site
from wetread.graph.passes.shapes import assign
from wetread.graph.passes.skeleton import skeleton
from wetread.graph.passes.unused import unused
from wetread.graph.passes.window import Trial, choose
from wetread.graph.verify import verify


def optimise(
    graph: Graph,
    *,
    window: Sequence[int] | None = None,
    outputs: Sequence[str] | None = None,
    check: bool = True,
    passes: Sequence[Pass],
) -> tuple[Graph, GraphReport]:
    """Rewrites a network so that it computes the same with fewer nodes.

    After each pass the network is verified, and every value that the pass changed is compared with what it was,
    in float64 on random inputs; at the end the whole network is, once.

    Args:
        graph: the network.
        window: spatial shape that it will be used with; checks use a smaller one where the network takes it.
        outputs: the outputs to keep, in this order; None keeps all. Deep-supervision heads end here.
        check: False leaves out the comparisons (not the verification).
        passes: in their order.

    Returns:
        The network, whose nodes all have unique names, and the report.

    Raises:
        GraphError: the network is malformed; or a rewrite fails its check: the message names pass and node.
    """
    verify(graph)
    reports = []
    start = graph
    if outputs is not None:
        start = graph.cut(outputs)
        reports.append(_cut_report(graph, start))
    model = start.ir()
    _name(model)
    small = skeleton(model, graph.where)
    assign(model, small)
    trial = choose(start, small, window) if check else None
    for step in passes:
        model, small, report = _run(step, model, small, trial)
        reports.append(report)
    result = Graph.from_ir(model, graph.where)
    verify(result)
    error = None if trial is None else _compare(result, trial)
    return result, GraphReport(
        tuple(reports),
        len(graph.nodes),
        len(result.nodes),
        dict(graph.operators),
        dict(result.operators),
        error,
    )


def _run(
    step: Pass, model: ir.Model, small: Graph, trial: Trial | None
) -> tuple[ir.Model, Graph, PassReport]:
    """One pass: run, cleaned up after, verified, checked."""
    where, count = small.where, len(model.graph)
    before = model.clone()
    network = Network(model)
    try:
        step.run(network)
        with quiet():
            for cleaner in unused():
                cleaner(model)
        _name(model)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise GraphError(
            f"pass {step.name!r} cannot work on this network: {type(error).__name__}: {error}", where=where,
            todo="build with this pass left out, and report it with the network",
        ) from error  # fmt: skip
    if not any(site.applied for site in network.sites) and len(model.graph) == count:
        return model, small, PassReport(step.name, count, count, tuple(network.sites))
    after = skeleton(model, where)
    try:
        verify(after)
    except GraphError as error:
        raise GraphError(
            f"pass {step.name!r} leaves a malformed network: {error.what}", where=error.where
        ) from error
    worst = None
    if trial is not None:
        worst = checking.check(before, model, trial.types(small), step.name, where)
    assign(model, after)
    return model, after, PassReport(step.name, count, len(model.graph), tuple(network.sites), worst)


def _name(model: ir.Model) -> None:
    """Unique names for every node and value; names that are unique already stay."""
    with quiet():
        common.NameFixPass()(model)


def _cut_report(graph: Graph, cut: Graph) -> PassReport:
    kept = {name for node in cut.nodes for name in node.output}
    gone = [node for node in graph.nodes if not kept.intersection(node.output)]
    names = ", ".join(entry.name for entry in graph.outputs if entry not in cut.outputs)
    sites = tuple(
        Site((node.name or node.output[0],), True, f"{node.op_type} served only the outputs {names}")
        for node in gone
    )
    return PassReport("outputs", len(graph.nodes), len(cut.nodes), sites)


def _compare(result: Graph, trial: Trial) -> float:
    """Largest relative error of an output of the whole network.

    Raises:
        GraphError: it is above the tolerance.
    """
    with np.errstate(all="ignore"):
        found = Evaluator(result).run(trial.inputs)
    worst = 0.0
    for name, expected in trial.outputs.items():
        error = checking.relative_error(expected, found[name])
        if error > checking.WHOLE:
            raise GraphError(
                f"the passes change the output {name!r} of the whole network: relative error {error:.1e}, "
                f"allowed {checking.WHOLE:.0e}",
                where=result.where,
            )
        worst = max(worst, error)
    return worst
