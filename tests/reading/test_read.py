"""From a study to its outputs, with a network whose answer is known: voxels denser than −280 HU."""

from __future__ import annotations

import json
import shutil

import nibabel
import numpy as np
import pytest

import wetread
from tests.conftest import BALLS, ball_recipe, ball_volume, threshold_network
from wetread.errors import (
    FileFormatError,
    GateError,
    OutputError,
    PackageError,
    SelectionError,
    StudyNotFoundError,
)
from wetread.reading import Case, CaseInfo, OutputFolder, ReadOptions, SaveOptions
from wetread.volume import Volume


@pytest.fixture(scope="module")
def reading(ball_study, ball_package):
    return wetread.read(ball_study, ball_package)


def test_findings_are_the_balls(reading):
    assert len(reading.findings) == 2
    for finding, (centre, radius) in zip(reading.findings, BALLS, strict=True):
        assert np.allclose(finding.centroid_lps_mm, centre, atol=0.4)
        assert finding.volume_ml == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.06)
        assert finding.long_axis_mm == pytest.approx(
            2 * radius, abs=1.7
        )  # a voxel is 0.8 mm, its edges count
        assert finding.mean == pytest.approx(40, abs=60)
        assert finding.max_probability > 0.99


def test_mask_is_what_is_dense(reading):
    # away from the surface of the balls, where linear interpolation blurs, the mask is exact
    volume = ball_volume()
    world = volume.grid.world(np.moveaxis(np.indices(volume.grid.shape), 0, -1))
    for centre, radius in BALLS:
        distance = np.linalg.norm(world - centre, axis=-1)
        assert reading.mask[distance < radius - 2].all()
        assert not reading.mask[(distance > radius + 2) & (distance < radius + 4)].any()
    assert reading.grid.same_place(volume.grid)


def test_same_study_same_tracking(reading, ball_study, ball_package):
    again = wetread.read(ball_study, ball_package, options=ReadOptions(engine="reference"))
    assert [f.tracking_uid for f in again.findings] == [f.tracking_uid for f in reading.findings]
    assert np.array_equal(again.mask, reading.mask)
    assert again.provenance.precision == "float64"


def test_outputs(reading, tmp_path):
    written = wetread.save(reading, tmp_path / "out")
    assert set(written) == {
        "findings.csv", "mask.nii.gz", "preview.png", "reading.json", "report.html", "seg.dcm", "sr.dcm",
    }  # fmt: skip
    data = json.loads(written["reading.json"].read_text())
    for name in ("centroid_lps_mm", "volume_ml", "long_axis_mm"):
        assert data["findings"][0][name] == pytest.approx(getattr(reading.findings[0], name))
    image = nibabel.load(written["mask.nii.gz"])
    index = np.linalg.inv(image.affine) @ (*np.multiply(BALLS[0][0], (-1, -1, 1)), 1.0)
    i, j, k = np.round(index[:3]).astype(int)
    assert np.asarray(image.dataobj)[i, j, k] == 1
    assert int(np.asarray(image.dataobj).sum()) == int((reading.mask > 0).sum())


def test_nothing_found_still_answers(tmp_path, ball_package):
    from wetread.dicom import write_ct_series

    volume = ball_volume()
    empty = Volume(np.full_like(volume.voxels, -850), volume.grid, "CT", ("none",))
    write_ct_series(empty, tmp_path / "dicom")
    reading = wetread.read(tmp_path / "dicom", ball_package)
    written = wetread.save(reading, tmp_path / "out")
    assert reading.findings == () and not reading.mask.any()
    assert "sr.dcm" in written and "seg.dcm" not in written
    notices = json.loads(written["reading.json"].read_text())["notices"]
    assert "SEG_OMITTED" in {notice["code"] for notice in notices}


def test_slices_in_any_order_give_the_same_reading(reading, ball_package):
    from wetread.engines.registry import make_engine
    from wetread.inference import Runner

    volume = ball_volume()
    package = wetread.Package.open(ball_package)
    rng = np.random.default_rng(3)
    with_engine = make_engine(package, "openvino")
    n = volume.grid.shape[0]
    for order in (np.arange(n), np.arange(n)[::-1], rng.permutation(n)):
        case = Case(package, with_engine, volume.grid, CaseInfo(modality="CT"))
        early = 0
        with Runner(case.sweep, with_engine) as runner:
            for k in order:
                case.add(int(k), volume.voxels[k : k + 1])
                runner.run()
                early = early or (case.sweep.windows_run if len(case.ready()) == 0 else 0)
        assert case.finished
        result = case.finish()
        assert np.array_equal(result.mask, reading.mask)
        assert [f.tracking_uid for f in result.findings] == [f.tracking_uid for f in reading.findings]
    with_engine.close()


def test_nifti_reads_like_dicom(reading, tmp_path, ball_package):
    volume = ball_volume()
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.grid.affine[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(volume.voxels.transpose(2, 1, 0), ras), tmp_path / "ct.nii.gz")
    other = wetread.read(tmp_path / "ct.nii.gz", ball_package)
    assert np.array_equal(other.mask.transpose(2, 1, 0), reading.mask)
    assert [f.volume_ml for f in other.findings] == pytest.approx([f.volume_ml for f in reading.findings])
    assert "MODALITY_ASSUMED" in {n.code for n in other.notices}
    written = wetread.save(other, tmp_path / "out")
    assert "seg.dcm" not in written and "mask.nii.gz" in written


def test_several_channels_are_resampled_to_the_reference(tmp_path):
    """Two channels of different grids: the network adds them, so both must lie where they should."""
    import onnx
    from onnx import helper, numpy_helper

    from wetread.build.pack import pack

    free = ["n", 2, "i", "j", "k"]
    weights = [
        numpy_helper.from_array(np.array([[[[[10.0]]], [[[10.0]]]]], np.float32), "w"),
        numpy_helper.from_array(np.array([-15.0], np.float32), "b"),  # both must be on
    ]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="both", kernel_shape=[1, 1, 1])],
        "both",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, free)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 1, "i", "j", "k"])],
        weights,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "m.onnx",
    )
    recipe = ball_recipe(
        name="two",
        channels=[
            {"name": "a", "select": {"file_suffix": "_0000"}},
            {"name": "b", "select": {"file_suffix": "_0001"}},
        ],
        steps=[{"step": "clip", "lower": 0, "upper": 1}],
        tiling={"kind": "whole"},
        orientation="RAS",
    )
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    package = pack(tmp_path / "m.onnx", tmp_path / "r.json", tmp_path / "models")
    study = tmp_path / "study"
    study.mkdir()
    a = np.zeros((40, 40, 40), np.float32)
    a[10:30, 10:30, 10:30] = 1
    b = np.zeros((20, 20, 20), np.float32)  # 2 mm, LPS order, same place
    b[:10] = 1  # x of the patient's left half: index 0 lies at the highest RAS x
    affine_b = np.diag([-2.0, -2.0, 2.0, 1.0])
    affine_b[:3, 3] = (38.5, 38.5, 0.5)
    nibabel.save(nibabel.Nifti1Image(a, np.eye(4)), study / "case_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(b, affine_b), study / "case_0001.nii.gz")
    mask = wetread.read(study, package).mask
    expected = np.zeros_like(a, bool)
    expected[20:30, 10:30, 10:30] = True
    assert np.array_equal(mask.astype(bool), expected)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda p: p / "absent", StudyNotFoundError),
        (lambda p: (p / "empty").mkdir() or p / "empty", StudyNotFoundError),
        (lambda p: (p / "x.dcm").write_text("not an image") and p / "x.dcm", FileFormatError),
        (lambda p: (p / "x.nii.gz").write_bytes(b"") or p / "x.nii.gz", FileFormatError),
    ],
)
def test_bad_studies_are_refused(make, error, tmp_path, ball_package):
    with pytest.raises(error) as caught:
        wetread.read(make(tmp_path), ball_package)
    assert str(caught.value)


def test_a_missing_slice_is_refused(ball_study, ball_package, tmp_path):
    shutil.copytree(ball_study, tmp_path / "dicom")
    sorted((tmp_path / "dicom").iterdir())[17].unlink()
    with pytest.raises(SelectionError, match=r"GAP|gap|missing"):
        wetread.read(tmp_path / "dicom", ball_package)


def test_wrong_modality_is_refused(ball_study, tmp_path):
    from wetread.build.pack import pack

    recipe = ball_recipe(name="mr", channels=[{"name": "t2", "select": {"modality": "MR"}}])
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    package = pack(threshold_network(tmp_path / "m.onnx"), tmp_path / "r.json", tmp_path / "models")
    with pytest.raises(SelectionError, match="modality is CT, the recipe wants MR"):
        wetread.read(ball_study, package)


def test_a_changed_package_is_refused(ball_package, ball_study, tmp_path):
    copy = tmp_path / "1.0.0"
    shutil.copytree(ball_package, copy)
    recipe = (copy / "recipe.json").read_text().replace("0.05", "0.06")
    (copy / "recipe.json").write_text(recipe)
    with pytest.raises(PackageError, match=r"recipe\.json"):
        wetread.read(ball_study, copy)


def test_gate_without_record_is_refused_and_override_is_recorded(ball_package, ball_study, tmp_path):
    copy = tmp_path / "1.0.0"
    shutil.copytree(ball_package, copy)
    gate = json.loads((copy / "gate.json").read_text())
    gate["records"] = []
    (copy / "gate.json").write_text(json.dumps(gate))
    with pytest.raises(GateError):
        wetread.read(ball_study, copy)
    reading = wetread.read(ball_study, copy, options=ReadOptions(allow_failed_gate=True))
    assert "overrid" in reading.provenance.gate.lower()


def test_output_folder_is_whole_or_absent(reading, tmp_path, monkeypatch):
    import importlib

    module = importlib.import_module("wetread.reading.saving")

    def full(*args: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(module, "write_mask", full)
    with pytest.raises(OutputError, match="disk is full"):
        wetread.save(reading, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_output_folder_is_not_overwritten(reading, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError):
        wetread.save(reading, out)
    with pytest.raises(OutputError):  # not even by force: these files are not ours
        wetread.save(reading, OutputFolder(out, force=True))
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    wetread.save(reading, out)
    wetread.save(reading, OutputFolder(out, force=True))
    assert (out / "reading.json").is_file()


def test_labelmap(reading, tmp_path):
    written = wetread.save(reading, tmp_path / "out", options=SaveOptions(seg="labelmap", report=False))
    import highdicom

    seg = highdicom.seg.segread(written["seg.dcm"])
    assert seg.SegmentationType == "LABELMAP"
    assert "report.html" not in written
    with pytest.raises(OutputError):
        SaveOptions(seg="other")  # type: ignore[arg-type]


def test_a_source_that_segs_cannot_refer_to_still_gets_its_answer(ball_study, ball_package, tmp_path):
    """A SEG needs a frame of reference; without one the other outputs are written, and a notice says why."""
    import pydicom

    shutil.copytree(ball_study, tmp_path / "dicom")
    for path in (tmp_path / "dicom").iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.FrameOfReferenceUID
        dataset.save_as(path)
    reading = wetread.read(tmp_path / "dicom", ball_package)
    written = wetread.save(reading, tmp_path / "out")
    assert len(reading.findings) == 2 and "mask.nii.gz" in written and "seg.dcm" not in written
    notices = {n["code"]: n["text"] for n in json.loads(written["reading.json"].read_text())["notices"]}
    assert "SEG_OMITTED" in notices and "frame of reference" in notices["SEG_OMITTED"].lower()
