"""The stroke example: a published checkpoint becomes a package whose mask is PyTorch's."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import wetread

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "mr_stroke"


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mask_is_pytorchs(real_case, tmp_path, monkeypatch):
    from wetread.build.pack import pack

    monkeypatch.setattr(sys, "path", [str(EXAMPLE), *sys.path])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import meshnet

        import build

        network = meshnet.load(real_case("mr-stroke/meshnet26.pt"))
        build.export(network, tmp_path / "model.onnx")
        package = pack(tmp_path / "model.onnx", EXAMPLE / "recipe.json", tmp_path / "models")
        image = real_case("mr-stroke/T2.nii.gz")
        theirs = build.torch_mask(network, image)
    reading = wetread.read(image, package)
    import nibabel

    mask = nibabel.Nifti1Image(reading.mask, nibabel.load(image).affine)
    ours = np.asarray(nibabel.as_closest_canonical(mask).dataobj) > 0
    assert theirs.sum() == 18109  # the figure that came with the case
    assert build.dice(ours, theirs) >= 0.999
    assert len(reading.findings) == 1
    assert reading.findings[0].volume_ml == pytest.approx(18.04, abs=0.05)
    assert reading.findings[0].voxels == 18038
