"""The search for the smallest set of released layers, on networks whose layers have known costs."""

from __future__ import annotations

import math

import pytest

from wetread.build.rollback import cheaper_mode, measure_sensitivity, smallest_release
from wetread.errors import GraphError

COST = {"a": 1.0, "b": 8.0, "c": 0.5, "d": 4.0, "e": 2.0, "f": 0.1}
LAYERS = tuple(COST)


def error(released: frozenset[str]) -> float:
    return sum(cost for layer, cost in COST.items() if layer not in released)


@pytest.mark.parametrize("mode", ["quantised", "released"])
def test_both_measurements_rank_additive_costs_alike(mode) -> None:
    ranking = measure_sensitivity(LAYERS, error, mode)
    assert [s.layer for s in ranking] == ["b", "d", "e", "a", "c", "f"]
    assert [s.error for s in ranking] == pytest.approx([8, 4, 2, 1, 0.5, 0.1])


def test_releasing_is_cheaper_where_int8_kernels_are_faster() -> None:
    assert cheaper_mode(20) == "released"
    assert cheaper_mode(20, int8_cost=1.0) == "quantised"
    assert cheaper_mode(1) == "quantised"


def test_an_error_that_is_no_number_names_the_layer() -> None:
    with pytest.raises(GraphError) as caught:
        measure_sensitivity(LAYERS, lambda released: math.nan if "c" not in released else 0.0, "quantised")
    assert caught.value.where == "c"


@pytest.mark.parametrize(
    ("limit", "size"), [(20, 0), (15.5, 1), (8, 1), (7, 2), (3.7, 2), (3, 3), (1, 4), (0.3, 5), (0, 6)]
)
def test_the_smallest_prefix_is_found(limit: float, size: int) -> None:
    ranked = [s.layer for s in measure_sensitivity(LAYERS, error, "quantised")]
    found = smallest_release(ranked, error, lambda e: e <= limit)
    assert found.passed
    assert len(found.released) == size
    assert found.score <= limit
    assert len(found.tries) <= 5 + size  # bisection, then one try for each layer that may be taken back


def test_layers_released_for_nothing_are_taken_back() -> None:
    """The ranking is wrong about two layers: they stand before the one that matters."""
    found = smallest_release(["a", "c", "b", "d"], error, lambda e: e <= 8)
    assert found.released == {"b"}


def test_every_set_is_judged_once() -> None:
    asked: list[frozenset[str]] = []

    def judge(released: frozenset[str]) -> float:
        asked.append(released)
        return error(released)

    smallest_release(["b", "d", "e", "a", "c", "f"], judge, lambda e: e <= 1.6)
    assert len(asked) == len(set(asked))


def test_where_nothing_helps_everything_was_released_and_it_says_so() -> None:
    found = smallest_release(list(LAYERS), lambda r: error(r) + 1, lambda e: e < 1)
    assert not found.passed
    assert found.released == set(LAYERS)
    assert found.score == 1


def test_layers_that_are_kept_anyway_are_part_of_every_set() -> None:
    found = smallest_release(["b", "d"], error, lambda e: e <= 8, kept=["f"])
    assert found.released == {"b", "f"}


def test_a_network_without_layers_to_release() -> None:
    assert not smallest_release([], error, lambda e: False).passed
