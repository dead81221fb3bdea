"""Faults planted on purpose: each is caught, by a message that names the node or the file.

What the importers catch (truncated checkpoints of nnU-Net, PyTorch and MONAI) has its tests in tests/importers.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.build.test_pipeline import RECIPE, finder, options, scan
from wetread.build import lower
from wetread.build.cases import case_shelf
from wetread.build.lower import calibrate, to_int8
from wetread.build.pipeline import build
from wetread.build.scales import check_scales
from wetread.errors import GraphError, NotFiniteError, PixelError, RecipeError, UnsupportedOperatorError
from wetread.graph import Graph
from wetread.graph.passes import optimise
from wetread.precision import calibration_windows, observe, quantise
from wetread.recipe import Channel, load_recipe


def changed(graph: Graph, tensor: str, factor: float) -> Graph:
    """The graph with one weight multiplied."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for initializer in model.graph.initializer:
        if initializer.name == tensor:
            array = numpy_helper.to_array(initializer)
            initializer.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), tensor))
            return Graph(model)
    raise AssertionError(f"no weight {tensor}")


@pytest.fixture(scope="module")
def lowered(cases: Path, tmp_path_factory: pytest.TempPathFactory):
    recipe = load_recipe(RECIPE)
    graph, _ = optimise(Graph.load(finder(tmp_path_factory.mktemp("m") / "finder.onnx")).fixed((16, 16, 16)))
    paths = [cases / "calibrate" / "c0", cases / "calibrate" / "c1"]
    ranges = observe(graph, calibration_windows(recipe, paths, per_case=4), threads=1)
    made, report = quantise(graph, ranges, calibrator="minmax")
    return graph, made, ranges, report


def test_scales_are_right_before_a_fault_is_planted(lowered) -> None:
    graph, made, ranges, report = lowered
    assert check_scales(graph, made, ranges, "minmax") == len(report.scales) + 3
    for calibrator in ("entropy", "percentile"):
        other, _ = quantise(graph, ranges, calibrator=calibrator)
        assert check_scales(graph, other, ranges, calibrator)


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_an_activation_scale_off_by_two(lowered, factor: float) -> None:
    graph, made, ranges, _ = lowered
    node = next(n for n in made.nodes if n.op_type == "QuantizeLinear")
    with pytest.raises(GraphError, match=r"reaches to .*the values observed to") as caught:
        check_scales(graph, changed(made, node.input[1], factor), ranges, "minmax")
    assert "conv_" in caught.value.where  # the convolution that reads it


def test_a_scale_that_differs_between_the_two_nodes_of_a_pair(lowered) -> None:
    graph, made, ranges, _ = lowered
    node = next(n for n in made.nodes if n.op_type == "QuantizeLinear")
    model = onnx.ModelProto()
    model.CopyFrom(made.model)
    scale = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == node.input[1]))
    model.graph.initializer.append(numpy_helper.from_array(scale * np.float32(2), "doubled"))
    back = next(
        n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == node.output[0]
    )
    back.input[1] = "doubled"
    with pytest.raises(GraphError, match=r"read back with .* 2 times as large") as caught:
        check_scales(graph, Graph(model), ranges, "minmax")
    assert "conv_" in caught.value.where


def test_a_weight_scale_off_by_two(lowered) -> None:
    graph, made, ranges, _ = lowered
    name = "conv_4.weight"
    stored = next(n for n in made.nodes if n.op_type == "DequantizeLinear" and name in n.input[0])
    with pytest.raises(GraphError, match="steps of its scale") as caught:
        check_scales(graph, changed(made, stored.input[1], 2.0), ranges, "minmax")
    assert "conv_4" in caught.value.where


def test_a_build_whose_quantiser_is_wrong_stops_at_the_node(
    cases: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def doubled(graph: Graph, ranges, **how):
        made, report = quantise(graph, ranges, **how)
        node = next(n for n in made.nodes if n.op_type == "QuantizeLinear")
        return changed(made, node.input[1], 2.0), report

    monkeypatch.setattr(lower, "quantise", doubled)
    with pytest.raises(GraphError, match="the values observed") as caught:
        build(finder(tmp_path / "m.onnx"), tmp_path / "out", options(cases, precision="int8"))
    assert "conv_" in caught.value.where
    assert not (tmp_path / "out").exists()


def test_a_batch_norm_folded_with_the_wrong_sign(
    cases: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rewrite that folds it is made to negate the bias: the pass's own check names pass and node."""
    from wetread.graph.passes import batch_norm

    honest = batch_norm.BatchNormPass.run

    def wrong(self, network) -> None:
        honest(self, network)
        import onnx_ir as ir

        node = next(n for n in network.model.graph if n.op_type == "Conv" and n.name == "conv_0")
        bias = node.inputs[2]
        bias.const_value = ir.tensor(-bias.const_value.numpy(), name=bias.name)

    monkeypatch.setattr(batch_norm.BatchNormPass, "run", wrong)
    with pytest.raises(GraphError) as caught:
        build(finder(tmp_path / "m.onnx"), tmp_path / "out", options(cases, precision="fp32"))
    assert "batch_norm" in str(caught.value) and "batchnormalization_1" in str(caught.value)


def test_a_calibration_case_with_nan(cases: Path, tmp_path: Path) -> None:
    scan(tmp_path / "calibrate" / "good", 0)
    bad = scan(tmp_path / "calibrate" / "bad", 5)
    image = nibabel.load(bad / "ct.nii.gz")
    voxels = np.asarray(image.dataobj, np.float32)
    voxels[10, 10, 10] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), bad / "ct.nii.gz")
    with pytest.raises(PixelError, match="NaN") as caught:
        build(
            finder(tmp_path / "m.onnx"),
            tmp_path / "out",
            options(cases, precision="int8", calibrate=tmp_path / "calibrate"),
        )
    assert "bad" in str(caught.value)
    with pytest.raises(NotFiniteError, match="NaN") as caught:
        calibrate(
            [Graph.load(tmp_path / "m.onnx")],
            load_recipe(RECIPE),
            case_shelf(tmp_path / "calibrate", load_recipe(RECIPE)),
            "minmax",
        )
    assert "bad" in caught.value.where


def test_a_truncated_model(cases: Path, tmp_path: Path) -> None:
    model = finder(tmp_path / "m.onnx")
    model.write_bytes(model.read_bytes()[:-200])
    with pytest.raises(GraphError) as caught:
        build(model, tmp_path / "out", options(cases))
    assert "m.onnx" in str(caught.value)


def test_an_unsupported_operator(cases: Path, tmp_path: Path) -> None:
    model = onnx.load(finder(tmp_path / "m.onnx"))
    node = next(n for n in model.graph.node if n.op_type == "Relu")
    node.op_type, node.domain = "FancyRelu", "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedOperatorError, match="FancyRelu") as caught:
        build(tmp_path / "m.onnx", tmp_path / "out", options(cases))
    assert node.name in str(caught.value) and "m.onnx" in caught.value.where


def test_a_recipe_whose_channels_do_not_match(cases: Path, tmp_path: Path) -> None:
    two = load_recipe(RECIPE).model_copy(update={"channels": (Channel(name="ct"), Channel(name="pet"))})
    with pytest.raises(RecipeError, match=r"2 channels \(ct, pet\), the network takes 1") as caught:
        build(
            finder(tmp_path / "m.onnx"),
            tmp_path / "out",
            options(cases, recipe=two, gate=None, calibrate=None),
        )
    assert "m.onnx" in caught.value.where


def test_to_int8_checks_every_scale(lowered, cases: Path) -> None:
    graph = lowered[0]
    found = calibrate(
        [graph],
        load_recipe(RECIPE),
        case_shelf(cases / "calibrate", load_recipe(RECIPE)),
        "minmax",
        threads=1,
    )
    assert to_int8(found).precision == "int8"
