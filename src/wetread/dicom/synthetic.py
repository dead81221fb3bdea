"""Synthetic series: a volume written as valid CT Image Storage, for demonstrations, tests and load tests.

Attributes follow the CT Image IOD (DICOM PS3.3 A.3); the patient is named as a phantom and the instances say
that they are synthetic, so that nobody takes them for a person.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from wetread.errors import GeometryError, OutputError, PixelError
from wetread.volume import Volume

_IMPLEMENTATION_UID = UID("2.25.297148273415932842746128164028105398012")


@dataclass(frozen=True)
class SeriesNames:
    """What a synthetic series is called; the same names and seed give the same UIDs.

    Attributes:
        seed: makes the UIDs.
        patient_name: must say that this is a phantom.
        patient_id: patient identifier.
        description: Series Description.
        series_number: Series Number.
        date: Study Date, ``YYYYMMDD``.
    """

    seed: int = 0
    patient_name: str = "PHANTOM^WETREAD"
    patient_id: str = "WETREAD-PHANTOM"
    description: str = "Synthetic chest phantom"
    series_number: int = 1
    date: str = "20260101"

    def uid(self, *parts: object) -> UID:
        """A UID under 2.25 from the seed, the patient and some parts (PS3.5 section B.2)."""
        content = "\0".join(map(str, ("wetread", self.seed, self.patient_id, *parts))).encode()
        return UID(f"2.25.{int.from_bytes(hashlib.sha256(content).digest()[:16], 'big')}")


def write_ct_series(
    volume: Volume, folder: Path, *, names: SeriesNames | None = None, kernel: str = "B50f"
) -> tuple[Path, ...]:
    """Writes a volume as one CT series, one file for each index along its first axis.

    Args:
        volume: 3D, Hounsfield units, rounded to whole ones; its grid is orthogonal, and its axes are
            right-handed in the order (column, row, slice), as in any DICOM series.
        folder: made where it does not exist; files are named ``CT000001.dcm``, ….
        names: what the series is called.
        kernel: Convolution Kernel.

    Returns:
        The files, in the order of the slices.

    Raises:
        GeometryError: the grid is sheared or left-handed, or the volume has channels.
        PixelError: values outside -32768 to 32767 HU.
        OutputError: the files cannot be written.
    """
    names = names or SeriesNames()
    grid = volume.grid
    if volume.voxels.ndim != 3 or not grid.is_orthogonal or np.linalg.det(grid.directions[:, ::-1]) < 0:
        raise GeometryError(
            "a CT series needs one channel on an orthogonal grid with axes [slice, row, column]",
            code="NOT_A_SERIES",
            todo="flip or resample the volume first",
        )
    low, high = float(volume.voxels.min()), float(volume.voxels.max())
    if low < -32768 or high > 32767:
        raise PixelError(
            f"values run from {low:g} to {high:g}, expected -32768 to 32767 HU", code="PIXEL_RANGE"
        )
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(grid.shape[0]):
            path = folder / f"CT{index + 1:06d}.dcm"
            slice_dataset(volume, index, names, kernel).save_as(path, enforce_file_format=True)
            written.append(path)
    except OSError as error:
        raise OutputError(
            f"the series cannot be written: {error.strerror or error}",
            where=str(folder),
            todo="check space and permissions",
        ) from error
    return tuple(written)


def slice_dataset(volume: Volume, index: int, names: SeriesNames, kernel: str = "B50f") -> Dataset:
    """One slice of a volume as a CT image, file meta information included."""
    grid = volume.grid
    dataset = Dataset()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = names.uid("series", names.series_number, "instance", index)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _IMPLEMENTATION_UID
    meta.ImplementationVersionName = "WETREAD"
    dataset.file_meta = meta
    _identify(dataset, names, index, grid.frame_of_reference or names.uid("frame of reference"))
    spacing, directions = grid.spacing_mm, grid.directions
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImagePositionPatient = _decimals(grid.world((index, 0, 0)))
    dataset.ImageOrientationPatient = _decimals(np.concatenate([directions[:, 2], directions[:, 1]]))
    dataset.PixelSpacing = _decimals(np.array(spacing[1:]))
    dataset.SliceThickness = _decimals(np.array(spacing[:1]))[0]
    dataset.KVP = "120"
    dataset.ConvolutionKernel = kernel
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = grid.shape[1:]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", "0", "HU"
    dataset.WindowCenter, dataset.WindowWidth = "-600", "1500"
    pixels = np.rint(volume.voxels[index]).astype("<i2").tobytes()
    dataset.add_new(0x7FE00010, "OW", pixels + b"\0" * (len(pixels) % 2))
    return dataset


def _identify(dataset: Dataset, names: SeriesNames, index: int, frame_of_reference: str) -> None:
    """Patient, study, series, equipment and instance attributes."""
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = names.uid("series", names.series_number, "instance", index)
    dataset.StudyInstanceUID = names.uid("study")
    dataset.SeriesInstanceUID = names.uid("series", names.series_number)
    dataset.FrameOfReferenceUID = frame_of_reference
    dataset.PositionReferenceIndicator = ""
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = names.date
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "120000"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyID = "1"
    dataset.StudyDescription = "Synthetic phantom, not a patient"
    dataset.SeriesDescription = names.description
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = (
        names.series_number,
        index + 1,
        1,
    )
    dataset.Modality = "CT"
    dataset.Manufacturer = "wetread"
    dataset.ManufacturerModelName = "synthetic phantom"
    dataset.SoftwareVersions = "1"
    dataset.DeviceSerialNumber = str(names.seed)
    dataset.PatientName, dataset.PatientID = names.patient_name, names.patient_id
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.PatientPosition = "HFS"
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientComments = "Synthetic phantom made by wetread; not a person."


def _decimals(values: NDArray[np.float64]) -> list[str]:
    """Numbers as decimal strings of at most 16 characters (PS3.5 table 6.2-1), as exact as fits."""
    found = []
    for value in values:
        number = 0.0 if abs(value) < 1e-12 else float(value)
        digits = 16
        while len(shown := f"{number:.{digits}g}") > 16:
            digits -= 1
        found.append(shown)
    return found
