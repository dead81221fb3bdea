"""What the tests of inference share: small recipes and grids, and an engine whose network is a function."""

import numpy as np
import pytest

from wetread.engines.base import EngineInfo, TensorInfo
from wetread.errors import EngineError, NotFiniteError
from wetread.recipe import load_recipe
from wetread.volume import Grid


@pytest.fixture(scope="session")
def make_recipe():
    return recipe_of


def recipe_of(**changes):
    data = {
        "name": "test",
        "channels": [{"name": "CT"}],
        "steps": [
            {"step": "clip", "lower": -600, "upper": 400},
            {"step": "resample", "spacing_mm": [1, 1, 1]},
            {"step": "scale", "lower": -600, "upper": 400},
        ],
        "tiling": {"kind": "lattice", "window": [8, 12, 12], "stride": [4, 6, 6]},
        "activation": "sigmoid",
        "labels": [{"index": 1, "name": "nodule", "channels": [0], "threshold": 0.5}],
    }
    data.update(changes)
    return load_recipe(data)


def axial(shape, spacing=(1.25, 0.7, 0.7), origin=(-20.3, 10.1, 5.7), uid=""):
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing
    affine[:, 3] = (*origin, 1)
    return Grid(shape, affine, uid)


@pytest.fixture(scope="session")
def make_grid():
    return axial


@pytest.fixture(scope="session")
def make_engine():
    return FakeEngine


class FakeTicket:
    def __init__(self, work):
        self._work, self._done = work, False

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
            for one, result in zip(x, y, strict=True):
                result[...] = self.engine.function(one)
            self.engine.calls += len(x)
            if not np.isfinite(y).all():
                raise NotFiniteError("the network returned NaN")

        self._running = FakeTicket(work)
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
