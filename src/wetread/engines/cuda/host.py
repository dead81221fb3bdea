"""What a caller hands to a context: numpy arrays, torch tensors, anything that speaks DLPack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from wetread.engines.common import Port
from wetread.errors import EngineError

Given: TypeAlias = np.ndarray | torch.Tensor


def opened(array: Any, where: str) -> Given:
    """A numpy array or a torch tensor as it is; anything else by DLPack, without a copy.

    Raises:
        EngineError: it is no array.
    """
    if isinstance(array, np.ndarray | torch.Tensor):
        return array
    if not hasattr(array, "__dlpack__"):
        raise EngineError(
            f"expected a numpy array, a torch tensor or a DLPack object, found {type(array).__name__}",
            where=where,
        )
    try:
        return torch.from_dlpack(array)
    except (RuntimeError, BufferError, TypeError, ValueError) as error:
        raise EngineError(f"the array cannot be taken by DLPack: {error}", where=where) from error


def type_name(array: Given) -> str:
    """Name in numpy's words of the element type, in torch's where numpy has none."""
    return array.dtype.name if isinstance(array, np.ndarray) else str(array.dtype).removeprefix("torch.")


def check_batch(
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    ports: tuple[Sequence[Port], Sequence[Port]],
    max_batch: int,
    device: torch.device,
) -> tuple[tuple[Given, ...], tuple[Given, ...], int]:
    """Checks a submitted batch; gives its arrays, and its size n.

    Args:
        inputs: C-contiguous (n, channels, *spatial), in the processor's memory or on the device.
        outputs: writable, C-contiguous, one for each output port.
        ports: the context's inputs and outputs.
        max_batch: largest n.
        device: of the engine.

    Raises:
        EngineError: number, shape, type, layout or device of an array does not fit.
    """
    n: int | None = None
    sides: list[tuple[Given, ...]] = []
    for kind, arrays, expected in (("input", inputs, ports[0]), ("output", outputs, ports[1])):
        if len(arrays) != len(expected):
            raise EngineError(f"{len(arrays)} {kind} arrays given, the network has {len(expected)}")
        found = []
        for raw, port in zip(arrays, expected, strict=True):
            where = f"{kind} {port.name}"
            array = opened(raw, where)
            n = int(array.shape[0]) if n is None and array.ndim else n
            _check(array, port, n, where)
            _check_place(array, kind == "output", device, where)
            found.append(array)
        sides.append(tuple(found))
    if n is None or not 1 <= n <= max_batch:
        raise EngineError(f"batch of {n}, this context takes 1 to {max_batch}")
    return sides[0], sides[1], n


def _check(array: Given, port: Port, n: int | None, where: str) -> None:
    if tuple(array.shape) != (n, *port.shape):
        raise EngineError(f"shape is {tuple(array.shape)}, expected (n, {str(port.shape)[1:]}", where=where)
    if (name := type_name(array)) not in port.dtypes:
        raise EngineError(f"type is {name}, expected {' or '.join(port.dtypes)}", where=where)


def _check_place(array: Given, written: bool, device: torch.device, where: str) -> None:
    if isinstance(array, np.ndarray):
        if not array.flags.c_contiguous or (written and not array.flags.writeable):
            raise EngineError("array is not C-contiguous, or an output is read-only", where=where)
        return
    if not array.is_contiguous():
        raise EngineError(f"tensor is not C-contiguous, its strides are {array.stride()}", where=where)
    if array.device.type != "cpu" and array.device != device:
        raise EngineError(f"tensor is on {array.device}, the engine on {device}", where=where)
    if written and array.requires_grad:
        raise EngineError("an output tensor asks for gradients", where=where, todo="detach it")


def as_tensor(array: Given) -> torch.Tensor:
    """The same memory as a torch tensor; read-only numpy arrays are only ever read."""
    if isinstance(array, torch.Tensor):
        return array.detach()
    if not array.flags.writeable:
        array = np.asarray(_Readable(array))
    return torch.from_numpy(array)


class _Readable:
    """Lends a read-only array's memory to torch, which knows no such arrays and would warn of each."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
