"""Operators that only move values, and what passes must leave alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engines.cuda.lowering import inputs_of, kinds, lowered_step_by_step
from tests.networks import Builder, unet
from wetread.engines.cuda.lower import lower
from wetread.errors import EngineError, GraphError, UnsupportedOperatorError
from wetread.graph import Graph
from wetread.precision import observe, to_half
from wetread.precision.windows import CalibrationWindow

pytestmark = pytest.mark.peer

WINDOW = (4, 6, 8)
EXACT = 1e-5
HALF = 6e-3


def ints(b: Builder, name: str, *values: int) -> str:
    return b.constant(np.array(values, np.int64), name)


def graph_of(b: Builder, x: str, shape: tuple[int, ...], channels: int = 1) -> Graph:
    return Graph(b.model({"image": (None, channels, *WINDOW)}, {"logits": (x, (None, *shape))}))


def test_views_cost_nothing() -> None:
    """Slice, Transpose, Split, Squeeze, Reshape of a convolution's result: one copy into the output is left."""
    b = Builder()
    x = b.conv("image", (1, 6))
    x = b.add("Slice", [x, ints(b, "s", 0, 1), ints(b, "e", 4, -1), ints(b, "a", 1, 3), ints(b, "t", 2, 1)])
    x = b.add("Transpose", [x], perm=[0, 2, 3, 4, 1])
    b.add("Split", [x, ints(b, "p", 1, 3)], outputs=2, axis=1)
    x = b.add("Squeeze", [f"{b.nodes[-1].name}.0", ints(b, "q", 1)])
    x = b.add("Reshape", [x, ints(b, "r", 0, 2, 2, 8, 2)])
    program = lowered_step_by_step(graph_of(b, x, (2, 2, 8, 2)), WINDOW, 2, "float32", EXACT)
    assert kinds(program) == ["conv", "copy"]


def test_a_reshape_that_memory_does_not_allow_copies() -> None:
    b = Builder()
    x = b.conv("image", (1, 4))
    x = b.add("Reshape", [x, ints(b, "r", 0, -1)])  # channels last would have them in another order
    program = lowered_step_by_step(graph_of(b, x, (4 * 4 * 6 * 8,)), WINDOW, 1, "float32", EXACT)
    assert kinds(program)[:2] == ["conv", "copy"]


def test_a_concat_of_three_is_written_in_place() -> None:
    b = Builder()
    parts = [b.add("Relu", [b.conv("image", (1, 16))]) for _ in range(3)]
    x = b.conv(b.add("Concat", parts, axis=1), (48, 16))
    program = lowered_step_by_step(graph_of(b, x, (16, *WINDOW)), WINDOW, 2, "float16", HALF)
    assert kinds(program) == ["conv"] * 4 + ["copy"]
    bases = {program.base(step.outputs["y"]) for step in program.steps[:3]}
    assert len(bases) == 1


def test_a_concat_that_something_else_reads_is_made() -> None:
    b = Builder()
    a, c = (b.add("Relu", [b.conv("image", (1, 16))]) for _ in range(2))
    joined = b.add("Concat", [a, c], axis=1)
    x = b.add("Add", [b.conv(joined, (32, 32)), joined])
    program = lowered_step_by_step(graph_of(b, x, (32, *WINDOW)), WINDOW, 1, "float16", HALF)
    assert all("x2" not in step.inputs for step in program.steps)


def test_the_same_tensor_twice_in_a_concat() -> None:
    b = Builder()
    a = b.add("Relu", [b.conv("image", (1, 16))])
    x = b.conv(b.add("Concat", [a, a], axis=1), (32, 16))
    lowered_step_by_step(graph_of(b, x, (16, *WINDOW)), WINDOW, 1, "float16", HALF)


def test_concats_inside_concats() -> None:
    b = Builder()
    a, c, d = (b.add("Relu", [b.conv("image", (1, 16))]) for _ in range(3))
    inner = b.add("Concat", [a, c], axis=1)
    y = b.conv(inner, (32, 16))
    x = b.conv(b.add("Concat", [inner, d, y], axis=1), (64, 8))
    lowered_step_by_step(graph_of(b, x, (8, *WINDOW)), WINDOW, 2, "float16", HALF)


def test_a_sum_of_a_tensor_with_itself_and_a_chain_of_sums() -> None:
    b = Builder()
    a = b.conv("image", (1, 8))
    y = b.add("Add", [a, a])
    z = b.add("Add", [b.conv(y, (8, 8)), b.conv(y, (8, 8), kernel=1)])
    x = b.add("Relu", [b.add("Add", [b.add("Relu", [z]), y])])
    lowered_step_by_step(graph_of(b, x, (8, *WINDOW)), WINDOW, 1, "float32", EXACT)


def test_an_activation_before_a_sum_stays_before_it() -> None:
    b = Builder()
    a = b.conv("image", (1, 8))
    y = b.add("LeakyRelu", [b.norm(b.conv(a, (8, 8)), 8)], alpha=0.3)
    x = b.norm(b.add("Add", [y, a]), 8)
    lowered_step_by_step(graph_of(b, x, (8, *WINDOW)), WINDOW, 2, "float32", EXACT)


def test_activations_that_march_does_not_know_stay_apart() -> None:
    b = Builder()
    x = b.add("Elu", [b.conv("image", (16, 32))])
    x = b.add("Elu", [b.conv(x, (32, 16), stride=2)])
    program = lowered_step_by_step(graph_of(b, x, (16, 2, 3, 4), 16), WINDOW, 1, "float16", HALF)
    assert kinds(program)[:3] == ["conv", "pointwise", "conv"]
    assert program.steps[2].attributes["activation"] == {"name": "elu", "alpha": 1.0}


def test_norms_of_a_bias_that_something_else_reads() -> None:
    """The bias goes where the norm alone reads the sum, and stays where a second layer does."""
    b = Builder()
    a = b.conv("image", (1, 8))
    x = b.add("Add", [b.norm(a, 8), b.conv(a, (8, 8), kernel=1)])
    program = lowered_step_by_step(graph_of(b, x, (8, *WINDOW)), WINDOW, 1, "float32", EXACT)
    assert "bias" in program.steps[0].inputs


def test_asymmetric_pads_strides_and_groups() -> None:
    b = Builder()
    w = b.constant(b.rng.standard_normal((6, 2, 3, 1, 2)).astype(np.float32), "w")
    x = b.conv("image", (1, 4))
    x = b.add("Conv", [x, w], kernel_shape=[3, 1, 2], strides=[1, 2, 2], pads=[2, 0, 1, 0, 0, 1], group=2)
    u = b.constant(b.rng.standard_normal((6, 4, 3, 3, 3)).astype(np.float32), "u")
    x = b.add("ConvTranspose", [x, u], kernel_shape=[3] * 3, strides=[2, 1, 2], pads=[1, 0, 1, 1, 1, 0],
              output_padding=[1, 0, 0])  # fmt: skip
    model = b.model({"image": (None, 1, *WINDOW)}, {"logits": (x, (None, 4, None, None, None))})
    lowered_step_by_step(Graph(model), WINDOW, 2, "float32", EXACT)


def test_two_outputs_of_one_tensor_and_an_inner_output() -> None:
    b = Builder()
    a = b.add("Relu", [b.conv("image", (1, 4))])
    x = b.conv(a, (4, 2), kernel=1)
    same = b.add("Identity", [x])
    shapes = {"a": (a, (None, 4, *WINDOW)), "b": (x, (None, 2, *WINDOW)), "c": (same, (None, 2, *WINDOW))}
    program = lowered_step_by_step(
        Graph(b.model({"image": (None, 1, *WINDOW)}, shapes)), WINDOW, 1, "float32", EXACT
    )
    assert program.outputs == ("a", "b", "c")


def test_a_graph_that_mixes_types_keeps_them() -> None:
    graph = Graph(unet(features=(16, 32), norm=False))
    image = inputs_of(graph, (8, 8, 8), 1)["image"][0].astype(np.float32)
    kept = next(
        node.name for node in graph.nodes if node.op_type == "Conv" and node.name != graph.nodes[0].name
    )
    mixed, _ = to_half(graph, observe(graph, [CalibrationWindow("case", image)]), kept=(kept,))
    program = lowered_step_by_step(mixed, (8, 8, 8), 1, "float16", HALF)
    step = next(step for step in program.steps if kept in step.nodes)
    assert program.spec(step.inputs["weight"]).dtype == "float32"
    assert [program.spec(s.inputs["weight"]).dtype for s in program.steps if "weight" in s.inputs].count(
        "float16"
    ) == 5


def test_types_of_inputs_and_outputs_may_be_chosen() -> None:
    graph = Graph(unet(features=(16, 32)))
    program = lower(graph, (8, 8, 8), 1, "float16", input_dtype="float32", output_dtype="float32")
    assert program.spec("image").dtype == program.spec("logits").dtype == "float32"
    program = lower(graph, (8, 8, 8), 1, "float16")
    assert program.spec("image").dtype == program.spec("logits").dtype == "float16"


def test_refusals() -> None:
    graph = Graph(unet())
    with pytest.raises(EngineError, match="no precision 'int4'"):
        lower(graph, (8, 8, 8), 1, "int4")
    with pytest.raises(GraphError, match=r"does not take windows|do not agree"):
        lower(graph, (7, 8, 8), 1, "float32")
    b = Builder()
    x = b.add("MaxUnpool", [*["image"] * 1, ints(b, "i", *[0] * 192)], kernel_shape=[1, 1, 1])
    with pytest.raises((UnsupportedOperatorError, GraphError)) as caught:
        lower(graph_of(b, x, (1, *WINDOW)), WINDOW, 1, "float32")
    assert "MaxUnpool" in str(caught.value)
