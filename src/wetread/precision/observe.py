"""Ranges of inner tensors, observed while calibration windows run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from wetread.errors import GraphError, NotFiniteError
from wetread.graph import Graph
from wetread.graph.tensors import flat_outputs
from wetread.graph.tensors import tensors as tensor_entries
from wetread.package import TensorEntry
from wetread.precision.placement import quantised_tensors
from wetread.precision.ranges import Ranges, TensorRange
from wetread.precision.windows import CalibrationWindow

GROUP_BYTES = 512 << 20
"""Most bytes of inner tensors that are held at once, unless the largest are so large that three are more."""

CHUNK_BYTES = 128 << 20
"""Most bytes of windows that wait while the groups of tensors take their turns."""

Shape3 = tuple[int, int, int]


def observe(
    graph: Graph,
    windows: Iterable[CalibrationWindow],
    *,
    tensors: Sequence[str] | None = None,
    threads: int | None = None,
) -> Ranges:
    """Runs windows through a network in float32 and gathers the ranges of its inner tensors.

    Windows stream: a few are taken at a time, and for them the tensors are observed in groups, each by an engine
    that computes no more than the group needs. So memory depends on the network and the window, not on the
    number of cases; a network runs about half as often as there are groups, for each window.

    Args:
        graph: the network, before quantisation.
        windows: see `calibration_windows`.
        tensors: names of the tensors; by default all floating-point ones. Magnitudes are counted, as calibrators
            need it, for those that `quantise` could quantise.
        threads: processors to use.

    Raises:
        NotFiniteError: a window holds NaN or infinity, or an inner tensor does after it; names the case.
        GraphError: no such tensor, one whose size is not known before it runs, or there is no window at all.
        EngineError: the network does not run.
    """
    counted = set(quantised_tensors(graph))
    last = _channels_last(graph)
    found: dict[str, TensorRange] = {}
    cases: dict[str, None] = {}
    total = 0
    for chunk in _chunks(windows):
        total += len(chunk)
        cases.update((window.case, None) for window in chunk)
        by_shape: dict[Shape3, list[CalibrationWindow]] = {}
        for window in chunk:
            _check_window(window)
            a, b, c = window.array.shape[1:]
            by_shape.setdefault((a, b, c), []).append(window)
        for shape, same in by_shape.items():
            entries = _wanted(graph, shape, tensors)
            for name in entries:
                found.setdefault(name, TensorRange(name in last, name in counted))
            for group in groups(entries):
                _observe_group(graph, {name: entries[name] for name in group}, same, found, threads)
    if not total:
        raise GraphError(
            "no calibration window was given", where=graph.where, todo="give cases to calibrate on"
        )
    return Ranges(found, total, tuple(cases))


def groups(entries: dict[str, TensorEntry], limit: int = GROUP_BYTES) -> Iterator[list[str]]:
    """Runs of tensors whose float32 values take at most `limit` bytes together, or three times the largest.

    Each run costs a pass of the network. Where a tensor is very large, so is what the engine itself holds.
    """
    names: list[str] = []
    held = 0
    limit = max(limit, 3 * max((4 * elements(entry) for entry in entries.values()), default=0))
    for name, entry in entries.items():
        size = 4 * elements(entry)
        if names and held + size > limit:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    if names:
        yield names


def elements(entry: TensorEntry) -> int:
    """Number of values of a tensor whose sizes are known."""
    return int(np.prod([size or 0 for size in entry.shape], dtype=np.int64))


def _chunks(windows: Iterable[CalibrationWindow]) -> Iterator[list[CalibrationWindow]]:
    waiting = iter(windows)
    for first in waiting:
        more = max(0, CHUNK_BYTES // max(1, first.array.nbytes) - 1)
        yield [first, *itertools.islice(waiting, more)]


def _wanted(graph: Graph, shape: Shape3, names: Sequence[str] | None) -> dict[str, TensorEntry]:
    """The tensors to observe, with their shapes for this window."""
    entries = tensor_entries(graph, shape)
    if names is None:
        constant = _constant(graph)
        names = [name for name, entry in entries.items() if entry.dtype == "float32" and name not in constant]
        unknown: list[str] = []
    else:
        unknown = [name for name in names if name not in entries or entries[name].dtype != "float32"]
    unknown += [n for n in names if n in entries and any(size is None for size in entries[n].shape)]
    if unknown:
        raise GraphError(
            f"the shape of tensor {unknown[0]!r} for windows of {shape} is not known, or it is not float32",
            where=graph.where,
            todo="fold constants and infer shapes before (wetread.graph.passes)",
        )
    return {name: entries[name] for name in names if elements(entries[name])}


def _constant(graph: Graph) -> set[str]:
    """Values that follow from weights alone."""
    known = set(graph.weights) | {""}
    for node in graph.nodes:
        if all(name in known for name in node.input):
            known.update(node.output)
    return known


def _channels_last(graph: Graph) -> set[str]:
    """Tensors whose channels lie along the last axis: what matrix products and layer norms read and write."""
    kinds = {"Gemm", "MatMul", "LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax"}
    return {n for node in graph.nodes if node.op_type in kinds for n in (node.input[0], node.output[0])}


def _check_window(window: CalibrationWindow) -> None:
    if not np.isfinite(window.array).all():
        bad = int(window.array.size - np.isfinite(window.array).sum())
        raise NotFiniteError(
            f"{bad} of {window.array.size} values of a calibration window are NaN or infinite",
            where=window.case,
            todo="repair this calibration case, or leave it out",
        )


def _observe_group(
    graph: Graph,
    entries: dict[str, TensorEntry],
    windows: Sequence[CalibrationWindow],
    found: dict[str, TensorRange],
    threads: int | None,
) -> None:
    from wetread.engines.registry import make_engine

    inner = {name: entry for name, entry in entries.items() if name not in {e.name for e in graph.inputs}}
    for window in windows:
        for name in entries.keys() - inner.keys():
            found[name].update(window.array[None])
    if not inner:
        return
    a, b, c = windows[0].array.shape[1:]
    flat = flat_outputs(graph, {name: elements(entry) for name, entry in inner.items()})
    outputs = tuple(np.empty((1, elements(entry)), np.float32) for entry in inner.values())
    engine = make_engine(flat, "openvino", precision="float32", threads=threads)
    try:
        with engine.context((a, b, c)) as context:
            for window in windows:
                array = np.ascontiguousarray(window.array[None], np.float32)
                try:
                    context.submit((array,), outputs).wait()
                except NotFiniteError as error:
                    raise NotFiniteError(
                        f"{error.what} in the network in float32, {error.where}",
                        where=window.case,
                        todo="repair this calibration case, or look at the network at that tensor",
                    ) from error
                for (name, entry), output in zip(inner.items(), outputs, strict=True):
                    shape = tuple(size or 0 for size in entry.shape)
                    found[name].update(output.reshape(shape))
    finally:
        engine.close()
