"""The reference engine."""

from __future__ import annotations

import numpy as np
import onnx

from tests import networks
from tests.engines.contract import WINDOW, EngineContract, images
from wetread.engines import Engine, make_engine
from wetread.graph import Graph


class TestReference(EngineContract):
    tolerance = 1e-7  # outputs are rounded to float32 once

    def make(self, model: onnx.ModelProto) -> Engine:
        return make_engine(Graph(model), "reference")

    def test_float64_outputs_keep_every_digit(self, engine: Engine, graph: Graph) -> None:
        x = images(1)
        out = np.full((1, 3, *WINDOW), np.nan)
        with engine.context(WINDOW) as context:
            context.submit((x,), (out,)).wait()
        np.testing.assert_array_equal(out, graph.evaluate({"image": x})["logits"])

    def test_is_the_reference(self, engine: Engine) -> None:
        assert (engine.info.backend, engine.info.precision) == ("reference", "float64")


def test_networks_are_small_enough_to_be_quick() -> None:
    assert len(networks.unet((2, 3), (4, 8)).SerializeToString()) < 50_000
