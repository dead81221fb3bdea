"""The orientation ``kji``: what a network gets is what SimpleITK would have given to nnU-Net."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wetread.dicom.synthetic import write_ct_series
from wetread.inference.prepare import prepare
from wetread.reading.source import open_source
from wetread.recipe import Channel, Label, Recipe, Tiling
from wetread.volume import Grid, Volume

pytestmark = pytest.mark.peer
sitk = pytest.importorskip("SimpleITK")

UNIT = {"L": (1, 0, 0), "P": (0, 1, 0), "S": (0, 0, 1), "R": (-1, 0, 0), "A": (0, -1, 0), "I": (0, 0, -1)}


@pytest.mark.parametrize("codes", ["SPL", "PIL", "RIP"])  # axial, coronal, sagittal: [slice, row, column]
def test_series_and_files_are_given_as_simpleitk_gives_them(tmp_path: Path, codes: str) -> None:
    rng = np.random.default_rng(2)
    affine = np.eye(4)
    affine[:3, :3] = np.array([UNIT[c] for c in codes], float).T * (3.0, 0.7, 0.9)
    affine[:3, 3] = (-20.0, 31.0, 400.0)
    voxels = rng.integers(-900, 900, (6, 10, 9)).astype(np.int16)
    write_ct_series(Volume(voxels, Grid(voxels.shape, affine), modality="CT"), tmp_path / "dicom")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "dicom")))
    image = reader.Execute()
    sitk.WriteImage(image, str(tmp_path / "file.nii.gz"))
    recipe = Recipe(
        name="order",
        channels=(Channel(name="ct"),),
        orientation="kji",
        tiling=Tiling(kind="whole"),
        labels=(Label(index=1, name="a", channels=(1,)),),
    )
    for path in (tmp_path / "dicom", tmp_path / "file.nii.gz"):
        with open_source(path) as source:
            volume = source.load(0).volume
        array, grid = prepare(recipe, [volume.voxels], volume.grid)
        np.testing.assert_array_equal(array[0], sitk.GetArrayFromImage(image))
        np.testing.assert_allclose(grid.spacing_mm, image.GetSpacing()[::-1], rtol=1e-6)
        np.testing.assert_allclose(grid.origin_mm, image.GetOrigin(), atol=1e-4)
