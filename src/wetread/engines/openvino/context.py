"""Contexts of the OpenVINO engine: infer requests over arrays that the caller owns."""

from __future__ import annotations

from typing import Any

import numpy as np

from wetread.engines.common import Closing, Port, check_arrays, check_finite
from wetread.engines.openvino import runtime
from wetread.errors import EngineError


class OpenVinoTicket:
    """A submitted batch: one infer request for each window."""

    def __init__(
        self, ports: tuple[Port, ...], outputs: tuple[np.ndarray, ...], inputs: tuple[np.ndarray, ...]
    ) -> None:
        self._ports = ports
        self._outputs = outputs
        self._requests: list[Any] = []
        self._kept: list[Any] = [inputs]  # arrays and tensors stay alive while the requests run
        self._error: EngineError | None = None
        self._settled = False

    def started(self, request: Any, tensors: list[Any]) -> None:
        """Adds a window's running request and the tensors it works on."""
        self._requests.append(request)
        self._kept.append(tensors)

    def done(self) -> bool:
        """True once the outputs are written; never blocks."""
        return self._settled or all(request.wait_for(0) for request in self._requests)

    def wait(self) -> None:
        """Blocks until the outputs are written, and checks that they are finite.

        Raises:
            NotFiniteError: an output holds NaN or infinity.
            EngineError: OpenVINO failed.
        """
        self.settle()
        if self._error is not None:
            raise self._error

    def settle(self) -> None:
        """Waits and keeps the outcome for `wait`; the requests are free afterwards."""
        if self._settled:
            return
        try:
            for request in self._requests:
                request.wait()
            check_finite(self._outputs, self._ports, "output")
        except EngineError as error:
            self._error = error
        except (RuntimeError, MemoryError) as error:
            self._error = runtime.failure(error, "OpenVINO failed while running")
            self._error.__cause__ = error
        self._settled = True
        self._requests, self._kept, self._outputs = [], [], ()


class OpenVinoContext(Closing):
    """Infer requests on one compiled network; one thread at a time.

    Attributes:
        bytes: estimated activations. Contexts of one shape share them in fact, because the engine's one
            stream runs their windows in turn, so the sum over contexts is an upper bound.
        max_batch: largest batch that `submit` takes.
    """

    def __init__(
        self,
        ov: Any,
        compiled: Any,
        ports: tuple[tuple[Port, ...], tuple[Port, ...]],
        max_batch: int,
        activations: int,
    ) -> None:
        self.bytes = activations
        self.max_batch = max_batch
        self._ov = ov
        self._ports = ports
        self._requests = [compiled.create_infer_request() for _ in range(max_batch)]
        self._ticket: OpenVinoTicket | None = None
        self._closed = False

    def submit(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> OpenVinoTicket:
        """Starts one batch; arrays are used in place (a read-only input is copied).

        Raises:
            NotFiniteError: an input holds NaN or infinity. Maximum instructions drop NaN: a ReLU could turn
                it into a plausible zero before any output shows it.
            EngineError: an array does not fit, another batch is still running, or the context is closed.
        """
        if self._closed:
            raise EngineError("the context is closed")
        if self._ticket is not None:
            if not self._ticket.done():
                raise EngineError("another batch is still running", todo="wait for its ticket first")
            self._ticket.settle()
        n = check_arrays(inputs, outputs, self._ports, self.max_batch)
        check_finite(inputs, self._ports[0], "input")
        inputs = tuple(array if array.flags.writeable else array.copy() for array in inputs)
        self._ticket = OpenVinoTicket(self._ports[1], outputs, inputs)
        try:
            for i, request in enumerate(self._requests[:n]):
                tensors = [self._ov.Tensor(a[i : i + 1], shared_memory=True) for a in (*inputs, *outputs)]
                for j in range(len(inputs)):
                    request.set_input_tensor(j, tensors[j])
                for j in range(len(outputs)):
                    request.set_output_tensor(j, tensors[len(inputs) + j])
                request.start_async()
                self._ticket.started(request, tensors)
        except (RuntimeError, MemoryError) as error:
            self._ticket.settle()
            raise runtime.failure(error, "OpenVINO cannot start a window") from error
        return self._ticket

    def close(self) -> None:
        """Waits for a running batch and frees the requests; a second call does nothing."""
        if self._ticket is not None:
            self._ticket.settle()
        self._closed = True
        self._ticket = None
        self._requests = []
