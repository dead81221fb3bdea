"""An engine whose network is a numpy function; it follows the seam in every detail that loops rely on."""

import threading

import numpy as np

from wetread.engines.base import EngineInfo, TensorInfo
from wetread.errors import EngineError, NotFiniteError


class FakeTicket:
    def __init__(self, work, late):
        self._work, self._late, self._done = work, late, False

    def done(self):
        return self._done

    def wait(self):
        if not self._done:
            self._done = True
            self._work()


class FakeContext:
    def __init__(self, engine, shape, max_batch):
        self.engine, self.shape, self.max_batch = engine, shape, max_batch
        self.bytes = 0
        self.closed = False
        self._running = None
        self._thread = threading.get_ident()

    def submit(self, inputs, outputs):
        assert not self.closed
        (x,), (y,) = inputs, outputs
        if self._running is not None and not self._running.done():
            raise EngineError("another batch is still running")
        if x.shape[1:] != (self.engine.channels_in, *self.shape) or len(x) > self.max_batch:
            raise EngineError(f"input of shape {x.shape}")
        if y.shape != (len(x), self.engine.channels_out, *self.shape) or not x.flags.c_contiguous:
            raise EngineError(f"output of shape {y.shape}")
        y[...] = np.nan  # poison: what is not waited for is seen
        before = x.copy()

        def work():
            assert np.array_equal(before, x, equal_nan=True), "input changed while the batch ran"
            for one, result in zip(x, y):
                result[...] = self.engine.function(one)
            self.engine.calls += len(x)
            if not np.isfinite(y).all():
                raise NotFiniteError("the network returned NaN")

        self._running = FakeTicket(work, True)
        return self._running

    def close(self):
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class FakeEngine:
    """function: (channels_in, *window) -> (channels_out, *window)."""

    def __init__(self, function, channels_in=1, channels_out=1):
        self.function, self.channels_in, self.channels_out = function, channels_in, channels_out
        self.info = EngineInfo("fake", "float32", "cpu", "0")
        free = (None, None, None)
        self.inputs = (TensorInfo("x", (None, channels_in, *free), "float32"),)
        self.outputs = (TensorInfo("y", (None, channels_out, *free), "float32"),)
        self.bytes = 0
        self.calls = 0

    def context(self, shape, max_batch=1):
        return FakeContext(self, tuple(shape), max_batch)

    def output_shape(self, shape):
        return (self.channels_out, *shape)

    def close(self):
        pass
