"""Fuzzing the DICOM reader: damaged input gives a named error or a whole volume, never anything else.

Run as a test (``pytest tests/fuzz/fuzz_reader.py``) for ``WETREAD_FUZZ_SECONDS`` seconds, 5 by default, from
``WETREAD_FUZZ_SEED``, 0 by default. A failure names seed and round; ``fuzz(seconds, seed, start=round)`` repeats it.
"""

from __future__ import annotations

import io
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEGLSLossless, RLELossless

from wetread.dicom import ArchiveLimits, open_study
from wetread.dicom.decoders import decoders
from wetread.dicom.synthetic import SeriesNames, slice_dataset
from wetread.errors import WetreadError
from wetread.volume import Grid, Volume

SLOWEST_S = 20.0
_NUMBERS = (
    b"NaN",
    b"inf",
    b"-1",
    b"0",
    b"1e400",
    b"99999999",
    b"1\\2",
    b"",
    b"abc",
    b"\xff\xfe",
    b"1_0",
    b"65536",
)
_TAGS = (
    0x00280010,
    0x00280011,
    0x00280030,
    0x00280100,
    0x00280101,
    0x00280102,
    0x00280103,
    0x00280008,
    0x00281052,
    0x00281053,
    0x00200032,
    0x00200037,
    0x0020000E,
    0x00080018,
    0x00080016,
    0x00280002,
    0x00280004,
    0x00280120,
    0x00180050,
    0x00080060,
    0x00200013,
    0x7FE00010,
)


def series() -> list[bytes]:
    """Whole files of a small CT series, one of them compressed each way, and an enhanced instance."""
    affine = np.array([[0, 0, 0.8, -5], [0, 0.7, 0, 3], [1.5, 0, 0, 20], [0, 0, 0, 1.0]])
    grid = Grid((5, 8, 9), affine)
    voxels = np.random.default_rng(1).integers(-1000, 1000, grid.shape).astype(np.int16)
    volume = Volume(voxels, grid, "CT")
    datasets = [slice_dataset(volume, k, SeriesNames()) for k in range(5)]
    datasets[1].compress(RLELossless, generate_instance_uid=False)
    datasets[2].compress(JPEGLSLossless, generate_instance_uid=False)
    datasets[3].file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    datasets.append(enhanced(slice_dataset(volume, 0, SeriesNames(series_number=2)), volume))
    return [encoded(ds) for ds in datasets]


def enhanced(ds: Dataset, volume: Volume) -> Dataset:
    """The volume as one multi-frame instance."""
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    ds.NumberOfFrames = volume.grid.shape[0]
    items = []
    for k in range(ds.NumberOfFrames):
        item, place = Dataset(), Dataset()
        place.ImagePositionPatient = [f"{v:.6f}" for v in volume.grid.world((k, 0, 0))]
        item.PlanePositionSequence = Sequence([place])
        items.append(item)
    ds.PerFrameFunctionalGroupsSequence = Sequence(items)
    ds.PixelData = volume.voxels.astype("<i2").tobytes()
    return ds


def encoded(ds: Dataset) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def flip(raw: bytearray, rng: np.random.Generator) -> None:
    for at in rng.integers(0, len(raw), rng.integers(1, 12)):
        raw[at] = rng.integers(256)


def flip_header(raw: bytearray, rng: np.random.Generator) -> None:
    for at in rng.integers(min(128, len(raw) // 2), min(1600, len(raw)), rng.integers(1, 6)):
        raw[at] = rng.integers(256)


def cut(raw: bytearray, rng: np.random.Generator) -> None:
    del raw[rng.integers(len(raw)) :]


def drop(raw: bytearray, rng: np.random.Generator) -> None:
    at = rng.integers(len(raw))
    del raw[at : at + rng.integers(1, 40)]


def insert(raw: bytearray, rng: np.random.Generator) -> None:
    at = rng.integers(len(raw))
    raw[at:at] = rng.bytes(int(rng.integers(1, 40)))


def element(raw: bytearray, rng: np.random.Generator) -> None:
    """Changes the value or the length of one element that matters."""
    tag = int(rng.choice(_TAGS))
    at = raw.find((tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little"), 132)
    if at < 0 or at + 10 > len(raw):
        return
    if rng.random() < 0.3:
        raw[at + 6 : at + 8] = int(rng.integers(65536)).to_bytes(2, "little")
    elif rng.random() < 0.2:
        raw[at : at + 4] = rng.bytes(4)
    else:
        length = int.from_bytes(raw[at + 6 : at + 8], "little")
        value = _NUMBERS[rng.integers(len(_NUMBERS))] if rng.random() < 0.7 else rng.bytes(length % 64)
        raw[at + 8 : at + 8 + length] = value[:length].ljust(length, b" ")


MUTATIONS = (flip, flip_header, flip_header, cut, drop, insert, element, element, element)


def one_round(files: list[bytes], folder: Path, rng: np.random.Generator) -> str:
    """Damages one to three files, reads them, and says how it went."""
    changed = [bytearray(raw) for raw in files]
    for _ in range(rng.integers(1, 4)):
        target = changed[rng.integers(len(changed))]
        if target:
            MUTATIONS[rng.integers(len(MUTATIONS))](target, rng)
    packed = rng.random() < 0.2
    path = folder / "s.zip" if packed else folder / "s"
    if packed:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for k, raw in enumerate(changed):
                archive.writestr(f"{k}.dcm", bytes(raw))
        if rng.random() < 0.5:
            raw = bytearray(path.read_bytes())
            MUTATIONS[rng.integers(len(MUTATIONS))](raw, rng)
            path.write_bytes(raw)
    else:
        path.mkdir(exist_ok=True)
        for k, raw in enumerate(changed):
            (path / f"{k}.dcm").write_bytes(raw)
    return read(path)


def read(path: Path) -> str:
    outcome = "refused"
    try:
        with open_study(path, limits=ArchiveLimits(total_bytes=1 << 24)) as study:
            for found in study.series:
                assert all(isinstance(value, str) for value in found.attributes.values())
                try:
                    volume, notices = found.volume(threads=2)
                except WetreadError as error:
                    assert str(error) and error.code
                    continue
                grid = found.grid()[0]
                assert volume.voxels.shape == grid.shape == volume.grid.shape
                assert grid.is_orthogonal and volume.voxels.dtype in (np.int16, np.float32)
                assert np.isfinite(volume.voxels).all()
                assert all(notice.code and notice.text for notice in notices)
                labels = found.to_source(np.ones(grid.shape, np.uint8))
                assert labels.shape == (len(found.source_slices), *found.slices[0].shape)
                outcome = "read"
    except WetreadError as error:
        assert str(error) and error.code
    return outcome


def fuzz(folder: Path, seconds: float, seed: int = 0, start: int = 0) -> dict[str, int]:
    """Rounds until the time is up; counts of what came out."""
    files = series()
    counts = {"read": 0, "refused": 0}
    end, number = time.monotonic() + seconds, start
    with decoders():  # children are used again from round to round
        while time.monotonic() < end:
            began = time.monotonic()
            try:
                counts[one_round(files, folder, np.random.default_rng([seed, number]))] += 1
            except Exception as error:
                raise AssertionError(
                    f"seed {seed}, round {number}: {type(error).__name__}: {error}"
                ) from error
            assert time.monotonic() - began < SLOWEST_S, f"seed {seed}, round {number} took too long"
            number += 1
    return counts


@pytest.mark.timeout(0)
def test_reader_survives_damaged_input(tmp_path: Path) -> None:
    seconds = float(os.environ.get("WETREAD_FUZZ_SECONDS", "5"))
    counts = fuzz(tmp_path, seconds, int(os.environ.get("WETREAD_FUZZ_SEED", "0")))
    print(counts)
    assert min(counts.values()) > 0, f"one kind of outcome never happened: {counts}"


def test_undamaged_input_is_read(tmp_path: Path) -> None:
    for k, raw in enumerate(series()):
        (tmp_path / f"{k}.dcm").write_bytes(raw)
    assert read(tmp_path) == "read"
