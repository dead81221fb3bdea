"""What every backend checks in the same way: array shapes and types, batch size, finite numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from wetread.engines.base import TensorInfo
from wetread.errors import EngineError, GraphError, NotFiniteError
from wetread.package import ShapeProfile, TensorEntry

Shape3 = tuple[int, int, int]


class Closing:
    """Makes a class with a `close` method a context manager."""

    def close(self) -> None:
        """Frees what is held; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class StreamTicket:
    """A batch on a device's stream: done once the stream has passed the event behind it.

    Args:
        reached: whether the device has done the batch; may raise EngineError.
        collect: waits, copies and checks the outputs; raises what went wrong.
    """

    def __init__(self, reached: Callable[[], bool], collect: Callable[[], None]) -> None:
        self._left: tuple[Callable[[], bool], Callable[[], None]] | None = (reached, collect)
        self._error: EngineError | None = None

    def done(self) -> bool:
        """True once the outputs are written; never waits for the device."""
        if self._left is None:
            return True
        try:
            if not self._left[0]():
                return False
        except EngineError as error:
            self._finish(error)
        self.settle()
        return True

    def wait(self) -> None:
        """Blocks until the outputs are written, and checks them.

        Raises:
            NotFiniteError: an input or an output holds NaN or infinity.
            DeviceFaultError: the device was lost.
            EngineError: the device failed.
        """
        self.settle()
        if self._error is not None:
            raise self._error

    def settle(self) -> None:
        """Waits and keeps the outcome for `wait`; the context's memory is free afterwards."""
        if self._left is None:
            return
        try:
            self._left[1]()
        except EngineError as error:
            self._finish(error)
        else:
            self._finish(None)

    def _finish(self, error: EngineError | None) -> None:
        self._error = error
        self._left = None  # arrays of a batch that is done are held no longer


@dataclass(frozen=True)
class Port:
    """One input or output of a context: shape (channels, *spatial) of a window, numpy type names taken."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]


Ports = tuple[tuple[Port, ...], tuple[Port, ...]]
"""Inputs and outputs of a context."""


def tensor_infos(entries: Sequence[TensorEntry]) -> tuple[TensorInfo, ...]:
    """What manifests and graphs know of tensors, in the engines' words."""
    return tuple(TensorInfo(entry.name, entry.shape, entry.dtype) for entry in entries)


def check_network(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> None:
    """Refuses networks that windows of one shape cannot feed.

    Raises:
        GraphError: an input is not (batch, channels, three spatial axes) with channels fixed, its batch is
            fixed at more than one, or the network has no output.
    """
    if not inputs or not outputs:
        raise GraphError(
            f"the network has {len(inputs)} inputs and {len(outputs)} outputs, needs one of each"
        )
    for info in inputs:
        if len(info.shape) != 5 or info.shape[1] is None:
            raise GraphError(
                f"input has shape {shape_text(info.shape)}, expected (batch, channels, 3 spatial axes)",
                where=info.name,
                todo="export the network with a fixed number of channels and three spatial axes",
            )
        if info.shape[0] not in (None, 1):
            raise GraphError(
                f"the batch is fixed at {info.shape[0]}, expected 1 or free",
                where=info.name,
                todo="export the network with a free batch axis",
            )


def check_output(found: Sequence[int], name: str) -> tuple[int, ...]:
    """The first output's shape for one window, where it is a map of voxels or a vector of scores.

    Raises:
        EngineError: it has neither four axes (channels and space) nor one (classes).
    """
    if len(found) not in (1, 4):
        raise EngineError(
            f"the first output has shape {shape_text((1, *found))}, "
            "expected (batch, channels, 3 spatial axes), or (batch, classes) for scores",
            where=name,
        )
    return tuple(int(size) for size in found)


def check_window(
    shape: Sequence[int], inputs: Sequence[TensorInfo], max_batch: int, shapes: ShapeProfile | None = None
) -> Shape3:
    """Checks a window's spatial shape against the network's fixed axes and its profile, and the batch.

    Args:
        shape: spatial shape in voxels.
        inputs: the network's inputs.
        max_batch: windows at once.
        shapes: smallest and largest window that the engine was prepared for; None where there is no limit.

    Raises:
        EngineError: not three positive sizes, a size that the network fixes differently, one outside the
            profile, or max_batch < 1.
    """
    if max_batch < 1:
        raise EngineError(f"max_batch is {max_batch}, must be at least 1")
    if len(shape) != 3 or min(shape) < 1:
        raise EngineError(f"window {tuple(shape)} is not three positive sizes")
    for info in inputs:
        for found, fixed in zip(shape, info.shape[2:], strict=True):
            if fixed is not None and fixed != found:
                raise EngineError(
                    f"the network takes windows of {shape_text(info.shape[2:])}, asked for {tuple(shape)}",
                    where=info.name,
                    todo="use the recipe's window, or export the network with free spatial axes",
                )
    if shapes is not None and any(
        not low <= found <= high for low, found, high in zip(shapes.min, shape, shapes.max, strict=True)
    ):
        raise EngineError(
            f"windows are {shapes.min} to {shapes.max}, asked for {tuple(shape)}",
            where=inputs[0].name,
            todo="use a window inside the package's profile, or build it again with wider --shapes",
        )
    return int(shape[0]), int(shape[1]), int(shape[2])


def known_window(shape: Shape3 | None, used: Iterable[Shape3], where: str) -> Shape3:
    """The shape that was asked for, else the first of those that an engine was prepared for.

    Raises:
        EngineError: there is neither.
    """
    found = shape if shape is not None else next(iter(used), None)
    if found is None:
        raise EngineError(
            "the network's window is free and none was run yet", where=where, todo="give a shape"
        )
    return found


def window_refused(shape: Shape3, error: GraphError) -> EngineError:
    """What an engine raises for a window at which the network's shapes do not agree."""
    return EngineError(
        f"the network does not take windows of {shape}: {error.what}",
        where=error.where,
        todo="use a window whose sizes are multiples of the network's strides",
    )


def check_arrays(
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    ports: tuple[Sequence[Port], Sequence[Port]],
    max_batch: int,
) -> int:
    """Checks a submitted batch and returns its size n.

    Args:
        inputs: C-contiguous arrays (n, channels, *spatial), one for each input port.
        outputs: writable C-contiguous arrays, one for each output port.
        ports: the context's inputs and outputs.
        max_batch: largest n.

    Raises:
        EngineError: number, shape, type or layout of an array does not fit.
    """
    n: int | None = None
    for kind, arrays, expected in (("input", inputs, ports[0]), ("output", outputs, ports[1])):
        if len(arrays) != len(expected):
            raise EngineError(f"{len(arrays)} {kind} arrays given, the network has {len(expected)}")
        for array, port in zip(arrays, expected, strict=True):
            where = f"{kind} {port.name}"
            if not isinstance(array, np.ndarray):
                raise EngineError(f"expected a numpy array, found {type(array).__name__}", where=where)
            n = array.shape[0] if n is None and array.ndim else n
            if array.shape != (n, *port.shape):
                raise EngineError(f"shape is {array.shape}, expected (n, {str(port.shape)[1:]}", where=where)
            if array.dtype.name not in port.dtypes:
                raise EngineError(
                    f"type is {array.dtype.name}, expected {' or '.join(port.dtypes)}", where=where
                )
            if not array.flags.c_contiguous or (kind == "output" and not array.flags.writeable):
                raise EngineError("array is not C-contiguous, or an output is read-only", where=where)
    if n is None or not 1 <= n <= max_batch:
        raise EngineError(f"batch of {n}, this context takes 1 to {max_batch}")
    return n


def is_finite(array: np.ndarray) -> bool:
    """True where no element is NaN or infinite; one pass, unless the sum itself overflows."""
    if array.dtype.kind != "f":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum(dtype=np.float32 if array.dtype.itemsize < 4 else None)
    return bool(np.isfinite(total)) or bool(np.isfinite(array).all())


def check_finite(arrays: Sequence[np.ndarray], ports: Sequence[Port], kind: str) -> None:
    """Raises NotFiniteError naming the first array that holds NaN or infinity, and how many there are."""
    for array, port in zip(arrays, ports, strict=True):
        if not is_finite(array):
            bad = int(array.size - np.isfinite(array).sum())
            raise NotFiniteError(
                f"{bad} of {array.size} values are NaN or infinite",
                where=f"{kind} {port.name}",
                todo="look at the preprocessing and at the network's precision; no mask is made of this"
                if kind == "output"
                else "look at the volume and the recipe's steps",
            )


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape for people; free sizes are written as ``?``."""
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
