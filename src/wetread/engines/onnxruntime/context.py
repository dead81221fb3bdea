"""Contexts of the ONNX Runtime engine: a worker that runs windows on arrays that the caller owns."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from wetread.engines.common import Closing, Port, check_arrays, check_finite
from wetread.engines.onnxruntime import runtime
from wetread.errors import EngineError


class OnnxRuntimeTicket:
    """A submitted batch; keeps its outcome."""

    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def done(self) -> bool:
        """True once the outputs are written; never blocks."""
        return self._future.done()

    def wait(self) -> None:
        """Blocks until the outputs are written, and checks that they are finite.

        Raises:
            NotFiniteError: an output holds NaN or infinity.
            EngineError: ONNX Runtime failed.
        """
        error = self._future.exception()
        if error is not None:
            raise error

    def settle(self) -> None:
        """Waits, and keeps the outcome for `wait`."""
        wait([self._future])


class OnnxRuntimeContext(Closing):
    """One thread that runs windows on the engine's session; one thread at a time submits.

    Windows of a batch run one after the other, so that a window's numbers do not depend on its batch.

    Attributes:
        bytes: estimated activations, scratch space inside kernels not counted.
        max_batch: largest batch that `submit` takes.
    """

    def __init__(
        self,
        session: Any,
        ports: tuple[tuple[Port, ...], tuple[Port, ...]],
        max_batch: int,
        activations: int,
        where: str,
    ) -> None:
        self.bytes = activations
        self.max_batch = max_batch
        self._session = session
        self._ports = ports
        self._where = where
        self._worker = ThreadPoolExecutor(1, "wetread-onnxruntime")
        self._ticket: OnnxRuntimeTicket | None = None
        self._closed = False

    def submit(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> OnnxRuntimeTicket:
        """Starts one batch; arrays are used in place.

        Raises:
            NotFiniteError: an input holds NaN or infinity.
            EngineError: an array does not fit, another batch is still running, or the context is closed.
        """
        if self._closed:
            raise EngineError("the context is closed")
        if self._ticket is not None and not self._ticket.done():
            raise EngineError("another batch is still running", todo="wait for its ticket first")
        n = check_arrays(inputs, outputs, self._ports, self.max_batch)
        check_finite(inputs, self._ports[0], "input")
        self._ticket = OnnxRuntimeTicket(self._worker.submit(self._run, inputs, outputs, n))
        return self._ticket

    def _run(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...], n: int) -> None:
        """Runs all windows of a batch; the arguments keep the arrays alive meanwhile."""
        try:
            for i in range(n):
                binding = self._session.io_binding()
                for port, array in zip(self._ports[0], inputs, strict=True):
                    _bind(binding.bind_input, port.name, array[i : i + 1])
                for port, array in zip(self._ports[1], outputs, strict=True):
                    _bind(binding.bind_output, port.name, array[i : i + 1])
                self._session.run_with_iobinding(binding)
        except Exception as error:
            raise runtime.failure(error, "ONNX Runtime failed while running", self._where) from error
        check_finite(outputs, self._ports[1], "output")

    def close(self) -> None:
        """Waits for a running batch and ends the worker; a second call does nothing."""
        self._worker.shutdown(wait=True)
        self._closed = True


def _bind(bind: Any, name: str, window: np.ndarray) -> None:
    bind(name, "cpu", 0, window.dtype.type, window.shape, window.ctypes.data)
