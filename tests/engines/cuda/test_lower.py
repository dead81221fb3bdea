"""Small networks lowered in each precision: equal to the float64 evaluator after every pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import networks
from tests.engines.cuda.lowering import lowered_step_by_step
from wetread.engines.cuda.lower.passes import passes
from wetread.graph import Graph

pytestmark = pytest.mark.peer

# float32 sums of up to a few hundred products, a few layers deep; halves keep 11 and 8 bits of each activation
TOLERANCES = {"float32": 1e-5, "tf32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_unet(precision: str, batch: int) -> None:
    graph = Graph(networks.unet(features=(16, 32)))
    program = lowered_step_by_step(graph, (8, 16, 16), batch, precision, TOLERANCES[precision])
    assert program.outputs == ("logits",)


@pytest.mark.parametrize("maps", [False, True])
def test_a_classifier(maps: bool) -> None:
    graph = Graph(networks.classifier(maps=maps))
    lowered_step_by_step(graph, (8, 8, 12), 2, "float32", TOLERANCES["float32"])


def test_the_page_lists_the_passes_in_their_order() -> None:
    page = (Path(__file__).parents[3] / "docs" / "cuda-lowering.md").read_text()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][1:]
    assert [name for row in rows for name in row.split(", ")] == [name for name, _ in passes({})]


def test_eight_bits() -> None:
    # products of integers are exact; between them float16
    lowered_step_by_step(Graph(networks.int8_chain()), (8, 8, 8), 1, "int8", 2e-2)


@pytest.mark.parametrize("name", ["threshold", "planes"])
def test_others(name: str) -> None:
    graph = Graph(getattr(networks, name)())
    lowered_step_by_step(graph, (4, 6, 8), 1, "float32", TOLERANCES["float32"])
