"""What free window shapes cost, and how profiles are written."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests import networks
from wetread.build import shapes as shapes_module
from wetread.build.shapes import dynamic_cost
from wetread.errors import EngineError, GraphError, RecipeError
from wetread.graph import Graph
from wetread.package import ShapeProfile

PROFILE = ShapeProfile(min=(8, 8, 8), opt=(16, 8, 8), max=(16, 16, 16))


def test_both_ways_are_timed_in_turn() -> None:
    """A clock that ticks a second at each look: every window takes one, and all were looked at."""
    ticks = itertools.count()
    cost = dynamic_cost(
        Graph(networks.unet((1, 2), (4, 8))), PROFILE, threads=1, windows=4, clock=lambda: float(next(ticks))
    )
    assert (cost.fixed_ms, cost.dynamic_ms) == (1000.0, 1000.0)
    assert (cost.fixed_spread_ms, cost.dynamic_spread_ms) == (0.0, 0.0)
    assert (cost.fixed_prepare_s, cost.dynamic_prepare_s) == (1.0, 1.0)
    assert next(ticks) == 3 + 2 * 2 * 4 + 2 * 2  # of the warm windows only the start is looked at
    assert cost.largest_difference < 1e-5
    assert set(cost.as_dict()) >= {"fixed_ms", "dynamic_ms", "windows"}


def test_real_time() -> None:
    cost = dynamic_cost(Graph(networks.int8_chain()), PROFILE, threads=1, windows=3)
    assert cost.fixed_ms > 0
    assert cost.dynamic_ms > 0


def test_different_numbers_are_no_cost_but_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = iter((Graph(networks.unet((1, 2), (4, 8))), Graph(networks.unet((1, 2), (4, 8), seed=1))))
    make = shapes_module.make_engine
    monkeypatch.setattr(shapes_module, "make_engine", lambda _, *a, **k: make(next(graphs), *a, **k))
    with pytest.raises(EngineError, match="differ by"):
        dynamic_cost(Graph(networks.unet((1, 2), (4, 8))), PROFILE, threads=1, windows=1)


def test_networks_that_do_not_take_the_profile() -> None:
    odd = ShapeProfile(min=(8, 8, 8), opt=(9, 8, 8), max=(16, 16, 16))
    with pytest.raises(GraphError, match=r"\(9, 8, 8\)"):
        dynamic_cost(Graph(networks.unet((1, 2), (4, 8))), odd, threads=1, windows=1)


def test_profiles_as_text() -> None:
    found = ShapeProfile.parse("32x64x64:64X128x128:96x160x160")
    assert (found.min, found.opt, found.max) == ((32, 64, 64), (64, 128, 128), (96, 160, 160))
    assert ShapeProfile.parse("8x8x8") == ShapeProfile(min=(8, 8, 8), opt=(8, 8, 8), max=(8, 8, 8))


@pytest.mark.parametrize(
    "text",
    ["", "8", "8x8", "8x8x8:8x8x8", "8x8x8x8", "a:b:c", "0x8x8", "16x8x8:8x8x8:8x8x8", "8x8x8:8x8x8:8x8x4"],
)
def test_profiles_that_are_none(text: str) -> None:
    with pytest.raises(RecipeError, match="min:opt:max"):
        ShapeProfile.parse(text)


def test_arrays_of_the_network_s_type() -> None:
    b = networks.Builder(dtype=np.float16)
    x = b.conv("image", (1, 2))
    half = Graph(b.model({"image": (None, 1, *networks.FREE)}, {"out": (x, (None, 2, *networks.FREE))}))
    assert dynamic_cost(half, PROFILE, threads=1, windows=1).largest_difference < 1e-2
