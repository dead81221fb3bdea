"""Lower precision: what was observed on calibration cases, and the candidates that are made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wetread.build.cases import CaseShelf, digest_list
from wetread.build.deviation import Tuning, choose_windows, crop_around, read_whole
from wetread.build.options import Calibrator
from wetread.build.rollback import Mode, Sensitivity, cheaper_mode, measure_sensitivity
from wetread.build.scales import check_scales
from wetread.graph import Graph
from wetread.precision import (
    CalibrationWindow,
    PrecisionReport,
    Ranges,
    calibration_windows,
    equalise,
    observe,
    quantisable,
    quantise,
    quantised_tensors,
    to_half,
)
from wetread.recipe import Recipe

PARTS = 4
"""Parts that are observed of a volume that is read whole."""
PART_EDGE = 64
"""Longest edge of such a part in voxels."""

UNSIGNED_ENGINES = ("auto", "openvino", "onnxruntime")
"""Backends that take uint8 activations; TensorRT takes int8 alone."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was observed on the calibration cases.

    Attributes:
        recipe: how the network is used.
        graphs: optimised float32 networks of the ensemble, their channels equalised.
        ranges: of each.
        calibrator: how a scale follows from a range.
        observed, tuned: paths of the cases that ranges were observed on, and that layers are ranked on.
        per_case: windows of each case.
        digests: names and hashes of all calibration cases.
        unsigned: whether tensors without negative values become uint8, see `choose_sign`.
    """

    recipe: Recipe
    graphs: tuple[Graph, ...]
    ranges: tuple[Ranges, ...]
    calibrator: Calibrator
    observed: tuple[Path, ...]
    tuned: tuple[Path, ...]
    per_case: int
    digests: dict[str, str]
    unsigned: bool = False

    def facts(self) -> dict[str, Any]:
        """What ``build.json`` says of it."""
        return {
            "calibrator": self.calibrator,
            "unsigned": self.unsigned,
            "windows": self.ranges[0].windows,
            "windows_per_case": self.per_case,
            "cases": digest_list(self.digests),
            "observed": [path.name for path in self.observed],
            "ranked_on": [path.name for path in self.tuned],
        }


@dataclass(frozen=True, eq=False)
class Candidate:
    """The networks of a model in one precision.

    Attributes:
        precision: ``int8``, ``float16`` or ``float32``.
        graphs: in the order of the networks.
        reports: precision of every layer, one report for each graph; none for float32.
        released: layers that were left in floating point for the gate's sake.
    """

    precision: str
    graphs: tuple[Graph, ...]
    reports: tuple[PrecisionReport, ...] = ()
    released: frozenset[str] = frozenset()


def calibrate(
    graphs: Sequence[Graph],
    recipe: Recipe,
    cases: CaseShelf,
    calibrator: Calibrator,
    *,
    per_case: int = 8,
    threads: int = 0,
) -> Calibration:
    """Equalises the channels of all networks and observes their ranges on the calibration cases.

    Of four cases or more, the last quarter ranks layers and is not observed; of fewer, all do both.

    Raises:
        NotFiniteError: a case holds NaN; names it.
        InputError: a case cannot be read.
    """
    paths = tuple(cases.paths())
    apart = len(paths) // 4
    observed, tuned = (paths[:-apart], paths[-apart:]) if apart else (paths, paths)
    even = tuple(_equalised(graph, recipe, observed, threads) for graph in graphs)
    ranges = tuple(
        observe(graph, _observed(graph, recipe, observed, per_case, threads), threads=threads or None)
        for graph in even
    )
    return Calibration(recipe, even, ranges, calibrator, observed, tuned, per_case, cases.digests())


def _equalised(graph: Graph, recipe: Recipe, cases: Sequence[Path], threads: int) -> Graph:
    """The same network, to the bit, with channels that quantise better; two windows of a case tell enough."""
    few = _observed(graph, recipe, cases, 2, threads)
    found = observe(graph, few, tensors=quantised_tensors(graph), threads=threads or None)
    return equalise(graph, found)[0]


def _observed(
    graph: Graph, recipe: Recipe, cases: Sequence[Path], per_case: int, threads: int
) -> Iterator[CalibrationWindow]:
    """Windows to observe; of volumes that are read whole, parts of at most 64 voxels an edge.

    A whole head in 26 channels takes 0.3 GB a tensor, and a network has dozens. The parts lie around voxels drawn
    among those that are brighter than the mean, so not in air.
    """
    for window in calibration_windows(recipe, cases, per_case=per_case, threads=threads or None):
        if not read_whole(graph, recipe) or max(window.array.shape[1:]) <= PART_EDGE:
            yield window
            continue
        rng = np.random.default_rng(window.array.shape)
        bright = np.flatnonzero(window.array[0] > window.array[0].mean())
        for place in rng.choice(bright, min(per_case, PARTS)):
            middle = np.unravel_index(int(place), window.array.shape[1:])
            centre = [float(x) for x in middle]
            part = crop_around(window.array, centre, recipe.tiling.multiple, PART_EDGE)
            yield CalibrationWindow(window.case, part)


def to_int8(calibration: Calibration, released: frozenset[str] = frozenset()) -> Candidate:
    """All networks in INT8 but for the released layers, every scale checked.

    Raises:
        GraphError: a scale does not fit what was observed; names the node.
    """
    graphs, reports = [], []
    for graph, ranges in zip(calibration.graphs, calibration.ranges, strict=True):
        own = released & {node.name for node in graph.nodes}
        lowered, report = quantise(
            graph,
            ranges,
            calibrator=calibration.calibrator,
            released=own,
            unsigned=calibration.unsigned,
        )
        check_scales(graph, lowered, ranges, calibration.calibrator, own)
        graphs.append(lowered)
        reports.append(report)
    return Candidate("int8", tuple(graphs), tuple(reports), released)


def to_float16(calibration: Calibration) -> Candidate:
    """All networks in float16, but for what its range does not hold."""
    pairs = [
        to_half(graph, ranges) for graph, ranges in zip(calibration.graphs, calibration.ranges, strict=True)
    ]
    return Candidate("float16", tuple(graph for graph, _ in pairs), tuple(report for _, report in pairs))


def layers_of(calibration: Calibration) -> tuple[str, ...]:
    """Layers that can be quantised, in the order of the graphs; folds of one architecture share their names."""
    return tuple(dict.fromkeys(name for graph in calibration.graphs for name in quantisable(graph)))


def rank(
    calibration: Calibration,
    tuning: Tuning,
    engine: str,
    *,
    threads: int = 0,
    mode: Mode | None = None,
    report: Callable[[int, int], None] | None = None,
) -> tuple[Mode, tuple[Sensitivity, ...]]:
    """Ranks layers by what quantising each costs, on windows of the calibration cases alone.

    Args:
        calibration: what was observed.
        tuning: the windows.
        engine: backend that will serve the network.
        threads: CPU threads.
        mode: how layers are measured; None takes the cheaper way.
        report: called with (layers done, layers in all).
    """
    layers = layers_of(calibration)
    mode = mode if mode is not None else cheaper_mode(len(layers))
    done = 0

    def error(released: frozenset[str]) -> float:
        nonlocal done
        value = tuning.error(to_int8(calibration, released).graphs, engine, threads)
        done += 1
        if report is not None:
            report(min(done, len(layers)), len(layers))
        return value

    return mode, measure_sensitivity(layers, error, mode)


def choose_sign(calibration: Calibration, tuning: Tuning, engine: str, *, threads: int = 0) -> Calibration:
    """The calibration with or without uint8 behind a ReLU, whichever errs less on the tuning windows.

    Twice the levels mostly halve the error (MeshNet-26 on T2: Dice 0.991 for 0.984), but not always: lung-nodule by
    min-max came out worse (0.984 for 0.996), with a bias near lesions that runtimes agree on. The cause may be that
    much of such a scan is one clipped value, whose own rounding shifts everything behind it; it was not isolated.
    """
    if engine not in UNSIGNED_ENGINES:
        return calibration
    both = [replace(calibration, unsigned=unsigned) for unsigned in (False, True)]
    first, second = (tuning.error(to_int8(one).graphs, engine, threads) for one in both)
    return both[second < first]


def tuning_windows(calibration: Calibration, engine: str, *, threads: int = 0) -> Tuning:
    """Windows of the calibration cases that were kept for tuning, with what float32 returns for them."""

    def drawn() -> Iterator[CalibrationWindow]:
        yield from calibration_windows(
            calibration.recipe,
            calibration.tuned,
            per_case=calibration.per_case,
            seed=1,
            threads=threads or None,
        )

    return choose_windows(calibration.graphs, drawn(), calibration.recipe, engine, threads=threads)
