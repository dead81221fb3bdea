"""The check after every pass: each value that a pass changed is the same function of what it did not change.

The pass is not asked what it did. Its network is compared with the one before it, value by value and by name:
a value whose definition changed is cut out on both sides, down to the nearest values that both sides have, and
both are computed in float64 on random inputs. Values that are equal by structure (merged, renamed, constants
moved) need no numbers.

Random inputs are standard normal. A first attempt shrinks long spatial axes, which convolutions, norms and
activations do not mind; where that does not run or does not agree, the shapes of the check window decide, and
last of all the whole networks from their own inputs: only there can values that depend on each other not be
taken for independent ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from wetread.errors import GraphError
from wetread.graph.passes.expression import Contents, View, changed
from wetread.graph.passes.region import Region, cut_region, evaluate_region
from wetread.graph.passes.skeleton import Types

EXACT = 1e-10
"""Tolerance where the algebra is exact: sums in another order, in float64."""
ROUNDED = 1e-6
"""Tolerance where new weights were computed and rounded to float32 (2⁻²⁴ = 6e-8 each)."""
WHOLE = 1e-5
"""Tolerance of whole networks, in which the roundings of all layers add up."""
_SHORT = 6
_FLOATS = {
    onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16,
}  # fmt: skip


@dataclass
class Sides:
    """The two networks that are compared, and the types of the values that the first one has."""

    before: View
    after: View
    types: Types


def check(before: ir.Model, after: ir.Model, types: Types, name: str, where: str) -> float | None:
    """Compares the network before and after a pass.

    Args:
        before, after: the same names mean the same values.
        types: types and shapes of `before` at the check window.
        name: of the pass, for messages.
        where: of the network, for messages.

    Returns:
        The largest relative error of a changed value; None where nothing changed.

    Raises:
        GraphError: a value differs by more than its tolerance; names the pass and the node.
    """
    contents = Contents()
    sides = Sides(View(before, contents), View(after, contents), types)
    names = changed(sides.before, sides.after)
    folded = [n for n in names if n in sides.after.constants]
    worst = _check_folded(sides, folded, name, where) if folded else 0.0
    for value in names:
        if value not in sides.after.constants:
            worst = max(worst, _check_value(sides, value, name, where))
    same = len(before.graph) == len(after.graph) and not names
    return None if same else worst


def relative_error(expected: np.ndarray, found: np.ndarray) -> float:
    """Largest difference relative to the largest magnitude expected; infinite where shapes or NaNs differ."""
    if expected.shape != found.shape or not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        return float("inf")
    if not expected.size:
        return 0.0
    if expected.dtype.kind in "biu":
        return 0.0 if np.array_equal(expected, found) else float("inf")
    finite = np.isfinite(expected)
    difference = np.abs(expected - found, where=finite, out=np.zeros(expected.shape)).max()
    return float(difference / max(float(np.abs(expected[finite]).max(initial=0.0)), 1e-30))


def _check_value(sides: Sides, value: str, name: str, where: str) -> float:
    node = _place(sides, value)
    error, tolerance = float("inf"), EXACT
    for attempt in _attempts(sides, value):
        tolerance = attempt.tolerance
        with suppress(GraphError):
            error = attempt.run(sides)
        if error <= tolerance:
            return error
    raise GraphError(
        f"pass {name!r} changes what the network computes: relative error {error:.1e} in {value!r}, "
        f"allowed {tolerance:.0e}",
        where=f"{where}: {node}",
        todo="build with this pass left out, and report it with the network",
    )


@dataclass
class _Attempt:
    before: Region
    after: Region
    shapes: dict[str, tuple[int, ...]]
    elements: dict[str, int]
    tolerance: float

    def run(self, sides: Sides) -> float:
        """Relative error on random inputs."""
        for positive in (False, True):
            inputs = {n: _random(n, s, self.elements[n], positive) for n, s in self.shapes.items()}
            expected = _evaluate(self.before, sides.before, inputs, sides.types)
            if not np.isnan(expected).any():  # roots and logarithms are compared where they exist
                break
        return relative_error(expected, _evaluate(self.after, sides.after, inputs, sides.types))


def _evaluate(region: Region, view: View, inputs: dict[str, np.ndarray], types: Types) -> np.ndarray:
    with np.errstate(all="ignore"):
        (found,) = evaluate_region(region, view, inputs, types).values()
    return found


def _attempts(sides: Sides, value: str) -> Iterator[_Attempt]:
    """Small shapes, the shapes of the check window, and from the network's inputs on."""

    def border(name: str) -> bool:
        """Floating-point values of both sides; integers are shapes and indices, and are computed."""
        return (
            name in sides.before.values
            and name in sides.after.values
            and sides.types.get(name, (0, None))[0] in _FLOATS
        )

    for stop, short in ((border, True), (border, False), (lambda _: False, False)):
        before, after = cut_region(sides.before, [value], stop), cut_region(sides.after, [value], stop)
        tolerance = ROUNDED if _rounded(before, after) else EXACT
        if stop is not border:
            tolerance = WHOLE
        names = dict.fromkeys((*before.inputs, *after.inputs))
        if any(sides.types.get(n, (0, None))[1] is None for n in names):
            continue
        shapes = {n: tuple(sides.types[n][1] or ()) for n in names}
        if short:
            least = _extent(before)
            small = {n: (*s[:2], *(min(k, least) for k in s[2:])) for n, s in shapes.items() if len(s) > 3}
            if not small or small == {n: shapes[n] for n in small}:
                continue
            shapes |= small
        yield _Attempt(before, after, shapes, {n: sides.types[n][0] for n in names}, tolerance)


def _extent(region: Region) -> int:
    """Voxels an axis needs for every tap of the widest kernel to meet data."""
    least = _SHORT
    for node in region.nodes:
        kernel = node.attributes.get("kernel_shape")
        dilations = node.attributes.get("dilations")
        if kernel is not None:
            spread = list(dilations.value) if dilations is not None else [1] * len(kernel.value)
            least = max(least, *((k - 1) * d + 1 for k, d in zip(kernel.value, spread, strict=True)))
    return least


def _rounded(before: Region, after: Region) -> bool:
    """Whether the new side has constants that were rounded when stored, or exact ones where the old were rounded.

    Those of a recognised operator (√2 in Gelu) are exact, those of an export have float32.
    """
    known = {(node.domain, node.op_type) for node in before.nodes}
    if any((node.domain, node.op_type) not in known for node in after.nodes):
        return True
    old = [a for a in before.constants.values() if a.dtype.kind == "f"]
    return any(
        a.dtype.kind == "f" and not any(a.shape == b.shape and np.array_equal(a, b) for b in old)
        for a in after.constants.values()
    )


def _random(name: str, shape: Sequence[int], element: int, positive: bool) -> np.ndarray:
    """Numbers of their own for each name: two equal inputs would hide that they were mixed up."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    kind = helper.tensor_dtype_to_np_dtype(element)
    if np.dtype(kind).kind not in "fV":
        return np.ones(shape, kind)
    array = rng.standard_normal(shape)
    return np.abs(array) + 0.1 if positive else array


def _place(sides: Sides, value: str) -> str:
    node = sides.before.values[value].producer() or sides.after.values[value].producer()
    return f"{node.op_type} {node.name!r}" if node is not None else value


def _check_folded(sides: Sides, names: list[str], name: str, where: str) -> float:
    """Constants that took the place of computed values, all of them computed at once."""

    def border(value: str) -> bool:
        return sides.types.get(value, (0, None))[0] in _FLOATS and value in sides.after.values

    region = cut_region(sides.before, names, border)
    inputs = {}
    for n in region.inputs:
        element, shape = sides.types.get(n, (0, None))
        if shape is None:
            raise GraphError(
                f"pass {name!r} folds what depends on {n!r}, whose shape is not known", where=where
            )
        only_shape = all(u.node.op_type == "Shape" for u in sides.before.values[n].uses())
        inputs[n] = np.broadcast_to(np.float64(0), shape) if only_shape else _random(n, shape, element, False)
    with np.errstate(all="ignore"):
        found = evaluate_region(region, sides.before, inputs, sides.types)
    worst = 0.0
    for n in names:
        tensor = ir.convenience.get_const_tensor(sides.after.values[n])
        stored = np.asarray(tensor.numpy() if tensor is not None else None)
        error = relative_error(found[n], stored.astype(np.float64) if stored.dtype.kind == "f" else stored)
        if error > ROUNDED:
            raise GraphError(
                f"pass {name!r} folds {n!r} to a wrong constant: relative error {error:.1e}, "
                f"allowed {ROUNDED:.0e}",
                where=f"{where}: {_place(sides, n)}",
            )
        worst = max(worst, error)
    return worst
