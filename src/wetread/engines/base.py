"""The seam between inference and devices: engines and contexts.

An `Engine` is a package's network made ready for one device: immutable, weights loaded once. A `Context`
holds what one stream of work needs on top of it (activations, an infer request, a captured graph); several
contexts run on one engine at once, from different threads, and give the same numbers as alone. A context
itself is used by one thread at a time.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

_LONGEST = 128
"""Characters of a fingerprint, which is the name of a folder."""

Array = Any
"""An array exchanged by DLPack on the engine's device; a numpy array for CPU engines."""


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a network.

    Attributes:
        name: name in the graph.
        shape: (batch, channels, *spatial); None where the size is free.
        dtype: numpy name of the element type, such as ``float32``.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is: backend, precision and device, in words that go into the reading."""

    backend: str
    precision: str
    device: str
    version: str

    @property
    def fingerprint(self) -> str:
        """Name of the folder for plans and gates of this backend, version, precision and device.

        The number of threads, which some backends write behind the device's name, is no part of it.
        """
        device = re.sub(r",? *\d+ threads?", "", self.device)
        text = "-".join((self.backend, self.version, self.precision, device))
        plain = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._")
        if len(plain) <= _LONGEST:
            return plain
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]  # what is cut off may be what differs
        return f"{plain[: _LONGEST - 17].rstrip('-._')}-{digest}"


@dataclass(frozen=True)
class LayerRun:
    """One step of a network as its runtime executes it.

    Attributes:
        name: the runtime's own name of the step.
        type: what it computes, in the runtime's words, such as ``Convolution``.
        precision: element type that the kernel computes in; ``int8`` also where one operand is unsigned.
        kernel: the runtime's name of the kernel, such as ``brgconv_avx512_I8``; empty where it tells none.
        nodes: names of the graph's nodes that were fused into this step, as far as the runtime tells them. A
            node that gives an output of the network may stand here by that output's name.
    """

    name: str
    type: str
    precision: str
    kernel: str = ""
    nodes: tuple[str, ...] = ()


@runtime_checkable
class Layered(Protocol):
    """An engine that tells what its runtime really executes."""

    def layers(self, shape: tuple[int, int, int] | None = None) -> tuple[LayerRun, ...]:
        """Steps in the order of execution, for windows of the given spatial shape.

        Args:
            shape: None takes the network's own window, else the shape that was used first.

        Raises:
            EngineError: no shape is given, fixed or used so far, or the network does not take it.
        """
        ...


@runtime_checkable
class Ticket(Protocol):
    """A submitted batch."""

    def done(self) -> bool:
        """True once the outputs are written; never blocks."""
        ...

    def wait(self) -> None:
        """Blocks until the outputs are written.

        Raises:
            NotFiniteError: an output holds NaN or infinity.
            EngineError: the device failed.
        """
        ...


class Context(Protocol):
    """Activations and a stream on an engine; one thread at a time.

    Attributes:
        bytes: device memory that this context holds beyond the engine's weights, known before use.
        max_batch: largest batch that `submit` takes.
    """

    bytes: int
    max_batch: int

    def submit(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> Ticket:
        """Starts one batch. The caller owns all arrays and leaves them alone until the ticket is done.

        Args:
            inputs: one C-contiguous array for each network input, (n, channels, *spatial), n ≤ max_batch.
            outputs: arrays of the shapes and types that the network returns for these inputs.

        Raises:
            EngineError: number, shape or type of an array does not fit; another batch is still running.
        """
        ...

    def close(self) -> None:
        """Frees what the context holds; a second call does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Engine(Protocol):
    """A network made ready for one device; immutable, shared by its contexts.

    Attributes:
        info: backend, precision, device, version of the runtime.
        inputs, outputs: the network's tensors.
        bytes: memory held by the weights.
    """

    info: EngineInfo
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    bytes: int

    def context(self, shape: tuple[int, int, int], max_batch: int = 1) -> Context:
        """Makes a context for windows of the given spatial shape.

        Raises:
            EngineError: the network does not take that shape.
            DeviceMemoryError: the context does not fit.
        """
        ...

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """(channels, *spatial) of the first output for one window of the given spatial shape.

        A network that gives scores and no map of voxels returns (classes,), or (classes, 1, 1, 1).
        """
        ...

    def close(self) -> None:
        """Frees the engine; its contexts must be closed before. A second call does nothing."""
        ...
