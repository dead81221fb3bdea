"""Small DICOM series made to order, with a field that is linear in space so that values can be checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
MR_CLASS = "1.2.840.10008.5.1.4.1.1.4"
SLOPE = 0.05  # stored values resolve the ramp to 0.025


def ramp(world: np.ndarray) -> np.ndarray:
    """A field linear in LPS mm, between about -1000 and 1000 where the tests sample it."""
    return 50.0 + np.asarray(world) @ np.array([2.0, -1.5, 3.0])


@dataclass
class Maker:
    """Makes the data sets of a series of the ramp.

    Positions: ``origin + k * step`` for slice k, where step defaults to the spacing along the normal.
    """

    count: int = 6
    shape: tuple[int, int] = (14, 12)
    spacing: tuple[float, float] = (1.0, 1.0)
    distance: float = 2.0
    thickness: float | None = 2.0
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
    origin: tuple[float, ...] = (-5.0, 7.0, 11.0)
    step: tuple[float, ...] | None = None
    positions: Sequence[Sequence[float]] | None = None
    modality: str = "CT"
    series: int = 1
    first: int = 1
    tags: dict[str, object] = field(default_factory=dict)

    def places(self) -> np.ndarray:
        if self.positions is not None:
            return np.array(self.positions, float)
        axes = np.array(self.orientation).reshape(2, 3)
        step = np.cross(*axes) * self.distance if self.step is None else np.array(self.step)
        return np.array(self.origin) + np.arange(self.count)[:, None] * step

    def field_of(self, position: np.ndarray) -> np.ndarray:
        x, y = np.array(self.orientation, float).reshape(2, 3)
        rows, columns = np.indices(self.shape)
        world = position + rows[..., None] * self.spacing[0] * y + columns[..., None] * self.spacing[1] * x
        return ramp(world)

    def datasets(self) -> list[Dataset]:
        return [self.dataset(k, place) for k, place in enumerate(self.places())]

    def dataset(self, k: int, place: np.ndarray) -> Dataset:
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = CT_CLASS if self.modality == "CT" else MR_CLASS
        ds.SOPInstanceUID = f"1.2.3.{self.series}.{self.first + k}"
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", f"1.2.3.{self.series}"
        ds.FrameOfReferenceUID = "1.2.3.999"
        ds.Modality, ds.ImageType = self.modality, ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.SeriesNumber, ds.InstanceNumber = self.series, self.first + k
        ds.ImagePositionPatient = [f"{v:.9f}" for v in place]
        ds.ImageOrientationPatient = [f"{v:.9f}" for v in self.orientation]
        ds.PixelSpacing = [f"{v:.9f}" for v in self.spacing]
        if self.thickness is not None:
            ds.SliceThickness = f"{self.thickness:g}"
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = self.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleSlope, ds.RescaleIntercept = str(SLOPE), "0"
        stored = np.rint(self.field_of(place) / SLOPE)
        assert np.abs(stored).max() < 32767
        ds.PixelData = stored.astype("<i2").tobytes()
        ds["PixelData"].VR = "OW"
        for keyword, value in self.tags.items():
            setattr(ds, keyword, value)
        return ds


def save(datasets: Sequence[Dataset], folder: Path, names: str = "{:04d}.dcm") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    start = len(list(folder.iterdir()))
    for k, ds in enumerate(datasets):
        ds.save_as(folder / names.format(start + k), enforce_file_format=True)
    return folder


@pytest.fixture
def maker() -> type[Maker]:
    return Maker


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Path]:
    """Saves data sets into a folder of the test and gives the folder back."""
    return lambda datasets, name="study", names="{:04d}.dcm": save(datasets, tmp_path / name, names)


@pytest.fixture
def only(store: Callable[..., Path]) -> Callable[..., object]:
    """Saves data sets and gives the one series that they make."""
    from wetread.dicom import open_study

    def series(datasets: Sequence[Dataset]) -> object:
        study = open_study(store(datasets))
        assert len(study.series) == 1, study.series
        return study.series[0]

    return series


@pytest.fixture
def field_value() -> Callable[[np.ndarray], np.ndarray]:
    return ramp
