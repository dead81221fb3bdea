"""Classifiers: scores of a volume, compared with float64, and how they are written."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest

import wetread
from tests import networks
from tests.conftest import ball_recipe, ball_volume
from tests.dicom_out.conftest import verified  # noqa: F401
from wetread.build.pack import pack
from wetread.errors import OutputError, RecipeError
from wetread.graph import Graph
from wetread.inference.prepare import prepare
from wetread.inference.scores import activated, label_scores
from wetread.reading import ReadOptions
from wetread.recipe import Recipe, load_recipe

SHAPE = (16, 24, 24)
NAMES = ("normal", "haemorrhage", "fracture")


def recipe(**changes: object) -> Recipe:
    """Three classes of a CT that is resized to one shape; one window."""
    labels = [
        {"index": i + 1, "name": name, "channels": [i], "lesion": False} for i, name in enumerate(NAMES)
    ]
    data = ball_recipe(
        name="classes",
        task="classification",
        steps=[
            {"step": "clip", "lower": -600, "upper": 400},
            {"step": "scale", "lower": -600, "upper": 400},
            {"step": "resize", "shape": list(SHAPE)},
        ],
        tiling={"kind": "whole"},
        activation="softmax",
        labels=labels,
    )
    return load_recipe(data | changes)


def make(folder, parsed: Recipe, **arguments: object):
    network = networks.save(networks.classifier(**arguments), folder / "model.onnx")
    return pack(network, parsed, folder / "models")


def expected(parsed: Recipe, **arguments: object) -> np.ndarray:
    """Probabilities in float64 of the whole prepared volume as one window."""
    volume = ball_volume()
    image, _ = prepare(parsed, [volume.voxels], volume.grid)
    graph = Graph(networks.classifier(**arguments))
    scores = graph.evaluate({"image": image[None].astype(np.float64)})["scores"].reshape(-1)
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


@pytest.fixture(scope="module")
def reading(tmp_path_factory, ball_study):
    package = make(tmp_path_factory.mktemp("classes"), recipe())
    return wetread.read(ball_study, package)


@pytest.mark.parametrize("maps", [False, True])
def test_scores_agree_with_float64(tmp_path, ball_study, maps):
    package = make(tmp_path, recipe(), maps=maps)
    found = wetread.read(ball_study, package)
    want = expected(recipe(), maps=maps)
    assert list(found.scores) == list(NAMES)
    # float32 through three layers: a few 1e-7 of scores of about one
    np.testing.assert_allclose(list(found.scores.values()), want, atol=2e-6)
    assert found.top_class == NAMES[int(np.argmax(want))] and found.classes == (found.top_class,)
    assert found.mask is None and found.findings == ()
    exact = wetread.read(ball_study, package, options=ReadOptions(engine="reference"))
    np.testing.assert_allclose(list(exact.scores.values()), want, atol=1e-7)  # logits are kept as float32


def test_nifti_scores_like_dicom(reading, tmp_path):
    volume = ball_volume()
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.grid.affine[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(volume.voxels.transpose(2, 1, 0), ras), tmp_path / "ct.nii.gz")
    found = wetread.read(tmp_path / "ct.nii.gz", make(tmp_path, recipe()))
    np.testing.assert_allclose(list(found.scores.values()), list(reading.scores.values()), atol=1e-6)
    written = wetread.save(found, tmp_path / "out")
    assert set(written) == {"scores.csv", "preview.png", "reading.json", "report.html"}


def test_outputs(reading, tmp_path):
    written = wetread.save(reading, tmp_path / "out")
    assert set(written) == {"scores.csv", "preview.png", "reading.json", "report.html", "sr.dcm"}
    data = json.loads(written["reading.json"].read_text())
    assert data["scores"] == pytest.approx(reading.scores) and data["classes"] == list(reading.classes)
    assert not {"SEG_OMITTED", "SR_OMITTED"} & {notice["code"] for notice in data["notices"]}
    with written["scores.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == list(NAMES)
    assert [row["decided"] for row in rows] == [str(int(n == reading.top_class)) for n in NAMES]
    page = written["report.html"].read_text()
    assert "Scores" in page and reading.top_class in page and "No lesion found" not in page


def test_structured_report(reading, tmp_path, verified):  # noqa: F811
    import highdicom as hd

    written = wetread.save(reading, tmp_path / "out")
    verified(written["sr.dcm"])
    report = hd.sr.srread(written["sr.dcm"])
    groups = report.content.get_image_measurement_groups()
    assert len(groups) == len(NAMES)
    for group, name in zip(groups, NAMES, strict=True):
        assert group.tracking_identifier == name
        (certainty,) = [m for m in group.get_measurements() if m.name.value == "111012"]
        assert certainty.value == pytest.approx(100 * reading.scores[name], abs=1e-4)
        (presence,) = [q for q in group.get_qualitative_evaluations() if q.name.value == "121052"]
        assert presence.value.meaning == ("Present" if name == reading.top_class else "Absent")


def test_scores_that_do_not_read_back_are_refused(reading, tmp_path, monkeypatch):
    """Planted: one class is written with the score of another."""
    from wetread.dicom import sr

    real = sr._class
    first = reading.labels[0]
    monkeypatch.setattr(sr, "_class", lambda info, of: real(replace(info, name=first.name), of))
    with pytest.raises(OutputError) as caught:
        wetread.save(reading, tmp_path / "out")
    assert caught.value.code == "SR_READ_BACK"


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_windows_are_pooled(tmp_path, ball_study, pooling):
    """Several windows: the mean or the largest of their probabilities, in float64."""
    tiling = {"kind": "fitted", "window": [16, 16, 16], "stride": [12, 12, 12], "pooling": pooling}
    parsed = recipe(tiling=tiling)
    found = wetread.read(ball_study, make(tmp_path, parsed))
    assert found.provenance.windows_run > 1
    volume = ball_volume()
    image, _ = prepare(parsed, [volume.voxels], volume.grid)
    graph = Graph(networks.classifier())
    from wetread.inference.windows import plan_windows

    grid = prepare(parsed, [volume.voxels], volume.grid)[1]
    parts = []
    for window in plan_windows(parsed, grid):
        a, b, c = window.start
        part = image[None, :, a : a + 16, b : b + 16, c : c + 16].astype(np.float64)
        parts.append(activated(graph.evaluate({"image": part})["scores"][0], "softmax"))
    want = np.mean(parts, axis=0) if pooling == "mean" else np.max(parts, axis=0)
    np.testing.assert_allclose(list(found.scores.values()), want, atol=2e-6)


def test_mirrored_passes_are_averaged_before_activation(tmp_path, ball_study):
    tiling = {"kind": "fitted", "window": list(SHAPE), "stride": list(SHAPE), "mirror_axes": [0, 2]}
    parsed = recipe(tiling=tiling)
    found = wetread.read(ball_study, make(tmp_path, parsed))
    volume = ball_volume()
    image, _ = prepare(parsed, [volume.voxels], volume.grid)
    graph = Graph(networks.classifier())
    flips = [(), (2,), (4,), (2, 4)]
    logits = [graph.evaluate({"image": np.flip(image[None], f).astype(np.float64)})["scores"] for f in flips]
    want = activated(np.mean(logits, axis=0)[0], "softmax")
    np.testing.assert_allclose(list(found.scores.values()), want, atol=2e-6)


def test_who_wins():
    three = recipe()
    assert label_scores(three, np.array([0.2, 0.5, 0.3]))[1] == ("haemorrhage",)
    several = recipe(
        activation="sigmoid",
        labels=[label.model_dump(mode="json") | {"threshold": 0.4} for label in three.labels],
    )
    assert label_scores(several, np.array([0.41, 0.9, 0.39]))[1] == ("haemorrhage", "normal")
    two = recipe(labels=[label.model_dump(mode="json") for label in three.labels[1:]])
    assert label_scores(two, np.array([0.6, 0.3, 0.1])) == ({"haemorrhage": 0.3, "fracture": 0.1}, ())
    one = recipe(labels=[three.labels[1].model_dump(mode="json")])
    assert label_scores(one, np.array([0.45, 0.5, 0.05]))[1] == ("haemorrhage",)


def test_recipe_refusals():
    labels = [label.model_dump(mode="json") for label in recipe().labels]
    with pytest.raises(RecipeError, match=r"no lesions; set lesion to false for fracture"):
        recipe(labels=[*labels[:2], labels[2] | {"lesion": True}])
    with pytest.raises(RecipeError, match="the same name"):
        recipe(labels=[labels[0], labels[1] | {"name": "normal"}])


def test_a_map_of_voxels_is_no_classification(tmp_path):
    network = networks.save(networks.unet((1, 3)), tmp_path / "unet.onnx")
    with pytest.raises(RecipeError, match=r"needs \(classes,\)"):
        pack(network, recipe(), tmp_path / "models")


def test_scores_are_no_segmentation(tmp_path):
    network = networks.save(networks.classifier(), tmp_path / "model.onnx")
    with pytest.raises(RecipeError, match="expected as many as went in"):
        pack(network, recipe(task="segmentation"), tmp_path / "models")


def test_one_score_needs_a_sigmoid(tmp_path):
    network = networks.save(networks.classifier((1, 1)), tmp_path / "model.onnx")
    one = [recipe().labels[0].model_dump(mode="json")]
    with pytest.raises(RecipeError, match="softmax of one score"):
        pack(network, recipe(labels=one), tmp_path / "models")
    assert pack(network, recipe(labels=one, activation="sigmoid"), tmp_path / "models")


def test_too_few_classes(tmp_path):
    network = networks.save(networks.classifier((1, 2)), tmp_path / "model.onnx")
    with pytest.raises(RecipeError, match="returns 2 channels, the recipe's labels read channel 2"):
        pack(network, recipe(), tmp_path / "models")


def test_a_fixed_window_suits_a_resized_volume(tmp_path, ball_study):
    assert wetread.read(ball_study, make(tmp_path, recipe(), window=SHAPE)).scores
    with pytest.raises(RecipeError, match="a step `resize` or `fit`"):
        make(tmp_path, recipe(name="free", steps=[]), window=SHAPE)


def test_command_line_shows_scores(reading, tmp_path, capsys):
    from wetread.cli import show

    show.reading(reading, {})
    text = capsys.readouterr().out
    assert "haemorrhage" in text and "yes" in text and "No lesion found" not in text
