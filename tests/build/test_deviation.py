"""How far outputs are apart, and which windows say so: against scipy's relative entropy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, rel_entr, softmax

from tests import networks
from tests.build.test_pipeline import RECIPE, finder
from wetread.build.deviation import choose_windows, crop_around, divergence, label_chance
from wetread.graph import Graph
from wetread.precision import CalibrationWindow
from wetread.recipe import load_recipe


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    p = (rng.standard_normal((3, 4, 5, 6)) * 3).astype(np.float32)
    return p, p + rng.standard_normal(p.shape).astype(np.float32)


def test_softmax_is_the_mean_relative_entropy(pair) -> None:
    p, q = pair
    expected = rel_entr(softmax(p.astype(float), 0), softmax(q.astype(float), 0)).sum(0).mean()
    assert divergence(p, q, "softmax") == pytest.approx(expected, rel=1e-9)
    assert divergence(p, p, "softmax") == 0


def test_sigmoid_counts_both_outcomes_of_each_channel(pair) -> None:
    p, q = pair
    a, b = expit(p.astype(float)), expit(q.astype(float))
    expected = (rel_entr(a, b) + rel_entr(1 - a, 1 - b)).sum(0).mean()
    assert divergence(p, q, "sigmoid") == pytest.approx(expected, rel=1e-6)
    assert divergence(p * 100, q * 100, "sigmoid") < np.inf  # saturated outputs overflow nothing


def test_outputs_that_are_no_logits(pair) -> None:
    p, q = pair
    expected = np.square(p.astype(float) - q).mean() / np.square(p.astype(float)).mean()
    assert divergence(p, q, "none") == pytest.approx(expected, rel=1e-6)


def test_crops_lie_inside_and_keep_multiples() -> None:
    window = np.arange(2 * 20 * 30 * 40, dtype=np.float32).reshape(2, 20, 30, 40)
    part = crop_around(window, (0.0, 29.0, 20.0), (4, 4, 4), 18)
    assert part.shape == (2, 16, 16, 16)
    np.testing.assert_array_equal(part, window[:, :16, 14:, 12:28])
    assert crop_around(window, (0, 0, 0), (1, 1, 1), 96).shape == window.shape


def test_windows_that_show_labels_are_kept(tmp_path) -> None:
    graph = Graph.load(finder(tmp_path / "m.onnx")).fixed((16, 16, 16))
    recipe = load_recipe(RECIPE)
    drawn = []
    for number in range(5):
        array = np.zeros((1, 16, 16, 16), np.float32)
        array[0, : 3 * number] = 0.64  # what a ball is after the recipe's steps
        drawn.append(CalibrationWindow(f"c{number}", array))
    tuning = choose_windows([graph, graph], drawn[::-1], recipe, "openvino", count=2, threads=1)
    assert [int((w > 0).sum()) for w in tuning.windows] == [12 * 256, 9 * 256]  # in the order they came
    assert len(tuning.outputs) == 2
    assert tuning.error([graph, graph], "openvino", 1) == pytest.approx(0, abs=1e-9)
    assert label_chance(tuning.outputs[0][0], recipe).shape == (16, 16, 16)


def test_whole_volumes_are_cropped_around_what_is_marked() -> None:
    model = networks.threshold(0.5)
    data = {**RECIPE, "tiling": {"kind": "whole"}, "activation": "softmax"}
    data["labels"] = [{"index": 1, "name": "bright", "channels": [1]}]
    recipe = load_recipe(data)
    array = np.zeros((1, 120, 40, 40), np.float32)
    array[0, 100:110, 10:20, 10:20] = 1.0
    tuning = choose_windows([Graph(model)], [CalibrationWindow("c", array)], recipe, "openvino", threads=1)
    assert tuning.windows[0].shape == (1, 96, 40, 40)
    assert tuning.windows[0].sum() == 1000
