"""Transformers lowered: which steps they become, and that these give what the float64 evaluator gives."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from wetread.engines.cuda.execute import run_reference  # noqa: E402
from wetread.engines.cuda.lower import lower  # noqa: E402
from wetread.engines.cuda.lower.transformer import regions_of  # noqa: E402
from wetread.graph import Graph  # noqa: E402
from wetread.graph.passes import optimise  # noqa: E402

pytestmark = pytest.mark.peer

TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "int8": 1e-2}
"""Relative L2 of the outputs. In float16 each of some thirty steps rounds to 5e-4 and errors add in squares; in eight
bits some values fall to the other side of a half."""


@cache
def swin():
    """Patch embedding, two blocks of which the second shifts its windows, merging of patches; not divisible."""
    from monai.networks.nets.swin_unetr import BasicLayer, PatchMergingV2

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Conv3d(1, 24, 2, 2)
            self.layer = BasicLayer(
                dim=24, depth=2, num_heads=3, window_size=(4, 4, 4), drop_path=[0.0, 0.0], qkv_bias=True,
                downsample=PatchMergingV2,
            )  # fmt: skip

        def forward(self, x):
            return self.layer(self.embed(x))

    return exported(Network(), (20, 12, 16)), (20, 12, 16)


@cache
def unetr():
    from monai.networks.nets import UNETR

    network = UNETR(1, 2, (32, 32, 32), feature_size=4, hidden_size=48, mlp_dim=96, num_heads=4)
    return exported(network, (32, 32, 32)), (32, 32, 32)


def exported(network, window):
    import io

    torch.manual_seed(0)
    torch.set_num_threads(1)
    for parameter in network.parameters():
        with torch.no_grad():  # norms of ones and zeros would hide a mistake
            parameter.add_(0.1 * torch.randn_like(parameter))
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.randn(1, 1, *window),), file, dynamo=False, opset_version=20,
            input_names=["image"], output_names=["out"],
        )  # fmt: skip
    return optimise(Graph.from_bytes(file.getvalue()), window=window, check=False)[0]


def compare(graph, window, precision, batch=1):
    shape = (batch, *(size or 1 for size in graph.inputs[0].shape[1:2]), *window)
    x = np.random.default_rng(0).standard_normal(shape)
    expected = graph.evaluate({graph.inputs[0].name: x})
    program = lower(graph, window, batch, precision)
    found = run_reference(program, {graph.inputs[0].name: torch.from_numpy(x)})
    for name, value in expected.items():
        y = found[name].double().numpy()
        assert np.linalg.norm(y - value) < TOLERANCE[precision] * np.linalg.norm(value), name
    return program


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_shifted_windows_are_two_linear_layers_and_one_attention(precision):
    graph, window = swin()
    program = compare(graph, window, precision)
    ops = [step.op for step in program.steps]
    assert ops.count("attention") == 2
    # embedding, two blocks of four linear layers, merging of patches
    assert ops.count("matmul") == 10
    assert set(ops) <= {"attention", "matmul", "layer_norm", "copy"}
    assert ops.count("copy") <= 1  # the output
    shifted = [step for step in program.steps if "regions" in step.inputs]
    assert [step.attributes["windows"]["shift"] for step in shifted] == [[2, 2, 2]]
    assert all("fill" in step.inputs for step in program.steps if step.op == "attention")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_vision_transformer_is_native(precision):
    graph, window = unetr()
    program = compare(graph, window, precision)
    ops = [step.op for step in program.steps]
    assert ops.count("attention") == 12
    assert "torch" not in ops
    assert "softmax" not in ops


def test_two_linear_layers_of_few_features_are_one_step(monkeypatch):
    from wetread.engines.cuda.lower import fuse_mlp

    monkeypatch.setattr(fuse_mlp, "MANY", 100)
    graph, window = swin()
    program = compare(graph, window, "float16")
    joined = [step for step in program.steps if step.op == "mlp"]
    assert len(joined) == 2
    assert all({"gamma", "bias1", "bias2", "residual"} <= set(step.inputs) for step in joined)
    assert sum(step.op == "matmul" for step in program.steps) == 6


def test_norms_before_linear_layers_are_part_of_them():
    graph, window = swin()
    program = lower(graph, window, 1, "float16")
    normed = [step for step in program.steps if step.op == "matmul" and step.attributes["norm"]]
    assert len(normed) == 5  # two in each block, one of merged patches
    assert not any(step.op == "layer_norm" for step in program.steps)


# small graphs


def model(nodes, weights, shape, functions=()):
    from wetread.graph.passes.functions import definition

    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in weights.items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)], tensors,
    )  # fmt: skip
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("wetread", 1)]
    made = helper.make_model(
        graph, opset_imports=sets, functions=[definition(name, 20) for name in functions]
    )
    return Graph(onnx.shape_inference.infer_shapes(made))


def weights(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs, [output], name=output, **attributes)


def run(graph, precision="float32"):
    window = tuple(graph.inputs[0].shape[2:])
    return compare(graph, window, precision)


def test_gemm_with_alpha_beta_and_a_turned_weight():
    nodes = [
        node("Flatten", ["x"], "flat"),
        node("Gemm", ["flat", "w", "c"], "y", transB=1, alpha=0.5, beta=2.0),
    ]
    program = run(model(nodes, {"w": weights(5, 8), "c": weights(5)}, [1, 1, 2, 2, 2]))
    assert [step.op for step in program.steps] == ["matmul"]


def test_a_residual_that_comes_later_is_not_taken_in():
    """The other summand is computed after the product: the sum stays a step."""
    nodes = [
        node("MatMul", ["x", "w"], "m"), node("MatMul", ["x", "v"], "n"), node("Relu", ["n"], "r"),
        node("Add", ["m", "r"], "y"),
    ]  # fmt: skip
    program = run(model(nodes, {"w": weights(6, 6), "v": weights(6, 6, seed=1)}, [1, 2, 3, 4, 6]))
    assert sum(step.op == "matmul" for step in program.steps) == 2


def test_products_of_tensors_and_softmax_that_are_no_attention():
    nodes = [
        node("Transpose", ["x"], "t", perm=[0, 1, 2, 4, 3]),
        node("MatMul", ["x", "t"], "s"),
        node("Softmax", ["s"], "p", axis=-2),
        node("MatMul", ["p", "x"], "y"),
    ]
    program = run(model(nodes, {}, [1, 2, 3, 5, 6]))
    assert [step.op for step in program.steps if step.op != "copy"] == ["matmul", "softmax", "matmul"]


def test_a_norm_that_others_read_stays_a_step():
    nodes = [
        node("LayerNormalization", ["x", "g", "b"], "l", axis=-1, epsilon=1e-5),
        node("MatMul", ["l", "w"], "m"),
        node("Add", ["m", "l"], "y"),
    ]
    program = run(
        model(nodes, {"g": weights(6), "b": weights(6, seed=1), "w": weights(6, 6)}, [1, 2, 3, 4, 6])
    )
    assert [step.op for step in program.steps] == ["layer_norm", "matmul"]


def test_an_embedding_of_patches_reads_the_image():
    nodes = [node("Conv", ["x", "w", "b"], "y", strides=[2, 4, 2], kernel_shape=[2, 4, 2])]
    program = run(model(nodes, {"w": weights(7, 2, 2, 4, 2), "b": weights(7)}, [1, 2, 5, 8, 6]))
    assert [step.op for step in program.steps if step.op != "copy"] == ["matmul"]


@pytest.mark.parametrize("undone", [True, False])
def test_windows_without_attention_are_moved_as_the_graph_says(undone):
    def own(operator, inputs, output, **attributes):
        return node(operator, inputs, output, domain="wetread", **attributes)

    constants = {
        "split": np.array([1, 2, 2, 1, 4, 2, 2, 3]), "tokens": np.array([4, 16, 3]),
        "whole": np.array([1, 4, 4, 4, -1]), "begin": np.array([1]), "end": np.array([-1]),
    }  # fmt: skip
    nodes = [
        own("Roll", ["x", "begin"], "r", axis=1, axes=[1]),
        own("WindowPartition", ["r", "split", "tokens"], "p"),
        node("Relu", ["p"], "a"),
        own("WindowReverse", ["a", "split", "whole"], "v"),
        own("Roll", ["v", "end"], "y", axis=1, axes=[1]) if undone else node("Neg", ["v"], "y"),
    ]
    made = model(nodes, constants, [1, 4, 4, 4, 3], functions=("Roll", "WindowPartition", "WindowReverse"))
    program = run(made)
    assert {step.op for step in program.steps} <= {"copy", "pointwise"}


def test_a_product_rounds_its_result_for_the_next_layer():
    """Quantise nodes after a linear layer and after a LayerNorm are part of them."""
    nodes = [
        node("MatMul", ["x", "w"], "m"),
        node("Gelu", ["m"], "g"),
        node("QuantizeLinear", ["g", "s", "z"], "gq"),
        node("DequantizeLinear", ["gq", "s", "z"], "gd"),
        node("LayerNormalization", ["gd", "o", "w0"], "l", axis=-1, epsilon=1e-5),
        node("QuantizeLinear", ["l", "s", "z"], "lq"),
        node("DequantizeLinear", ["lq", "s", "z"], "ld"),
        node("Relu", ["ld"], "y"),
    ]
    constants = {
        "w": weights(48, 32) / 7, "o": weights(32), "w0": weights(32, seed=1), "z": np.int8(0), "s": np.float32(0.02),
    }  # fmt: skip
    program = compare(model(nodes, constants, [1, 2, 3, 4, 48]), (3, 4, 48), "int8")
    made = {step.op: program.spec(step.outputs["y"]).dtype for step in program.steps}
    assert made["matmul"] == made["layer_norm"] == "int8"
    assert "quantise" not in made


def test_masks_are_regions_where_they_can_be():
    regions = np.array([[0, 0, 1, 2], [0, 1, 0, 0]])
    mask = np.where(regions[:, :, None] == regions[:, None, :], 0.0, -100.0)
    found = regions_of(mask)
    assert found is not None
    first, apart = found
    assert apart == -100
    assert np.array_equal(np.where(first[:, :, None] == first[:, None, :], 0.0, -100.0), mask)
    mask[0, 0, 1] = -3.0
    assert regions_of(mask) is None
