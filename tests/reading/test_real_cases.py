"""Real cases, where this machine has them."""

from __future__ import annotations

import numpy as np
import pytest

import wetread
from wetread.errors import SelectionError
from wetread.reading import describe

CENTRE_LPS_MM = (-57.44, 131.23, -520.36)  # LUNA16's annotation of lidc-idri-0314, diameter 15.49 mm


def test_lidc_nodule_is_found(real_case, tmp_path):
    """Held out: never trained or tuned on. A centroid within 8 mm, long axis 8–25 mm, at most 8 false positives."""
    reading = wetread.read(real_case("lidc-idri-0314/dicom"))
    distance = [
        float(np.linalg.norm(np.subtract(f.centroid_lps_mm, CENTRE_LPS_MM))) for f in reading.findings
    ]
    hits = [f for f, d in zip(reading.findings, distance, strict=True) if d <= 8]
    assert len(hits) == 1
    assert 8 <= hits[0].long_axis_mm <= 25
    assert len(reading.findings) - 1 <= 8
    written = wetread.save(reading, tmp_path / "out")
    assert {"seg.dcm", "sr.dcm", "mask.nii.gz", "report.html", "preview.png"} <= set(written)


def test_tilted_gantry_is_straightened_and_says_so(real_case):
    """Tilt 18.5°, spacings of 4.0, 7.0 and 1.08 mm in one series; the recipe excludes heads."""
    data = describe(real_case("ct-tilt-ge"))
    assert {"GANTRY_TILT", "SPACING_UNEVEN"} <= {notice["code"] for notice in data["series"][0]["repaired"]}
    with pytest.raises(SelectionError, match="HEAD"):
        wetread.read(real_case("ct-tilt-ge"))


def test_jpeg2000_series_is_read(real_case):
    data = describe(real_case("ct-jpeg2000"))
    assert data["series"][0]["grid"]["shape"][0] == 20
    reading = wetread.read(real_case("ct-jpeg2000"))
    assert reading.mask.shape == tuple(data["series"][0]["grid"]["shape"])


def test_four_channels_of_a_real_case(real_case, tmp_path):
    """mr-ms: FLAIR, T1, T1 after contrast and T2 go into their own channels; the truth file beside them does not."""
    import json

    import nibabel
    import onnx
    from onnx import helper, numpy_helper

    from wetread.build.pack import pack

    folder = real_case("mr-ms/patient26")
    weights = np.array([0.02, -0.01, 0.005, 0.01], np.float32)  # one for each channel, so that a swap shows
    constants = [
        numpy_helper.from_array(weights.reshape(1, 4, 1, 1, 1), "w"),
        numpy_helper.from_array(np.array([-1.0], np.float32), "b"),
    ]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="mix", kernel_shape=[1, 1, 1])],
        "mix",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4, "i", "j", "k"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 1, "i", "j", "k"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    names = ("FLAIR_", "T1_", "T1POST_", "T2_")
    recipe = {
        "name": "four",
        "channels": [{"name": n.strip("_"), "select": {"description": f"^{n}"}} for n in names],
        "orientation": "RAS",
        "tiling": {"kind": "fitted", "window": [96, 96, 96], "stride": [72, 72, 72]},
        "activation": "sigmoid",
        "labels": [{"index": 1, "name": "bright", "channels": [0]}],
        "lesions": {"min_ml": 5.0, "remove_small": False},
    }
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    reading = wetread.read(folder, pack(tmp_path / "m.onnx", tmp_path / "r.json", tmp_path / "models"))
    images = [nibabel.load(next(folder.glob(f"{n}*.nii.gz"))).get_fdata() for n in names]
    logit = np.tensordot(weights.astype(float), np.stack(images), 1) - 1.0
    clear = np.abs(logit) > 1e-4  # float32 sums on one side, float64 on the other
    assert np.array_equal((reading.mask == 1)[clear], (logit > 0)[clear])
    assert 0.001 < reading.mask.mean() < 0.5
    assert len(reading.provenance.sources) == 4
