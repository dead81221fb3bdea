"""Phantoms as cases on disk, as calibration and the gate take them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from wetread.bench.phantom import make_phantom
from wetread.dicom import write_ct_series
from wetread.nifti import write_mask

TRUTH = "truth.nii.gz"
LABEL = 1
"""Value of every nodule in the truth: lesions are told apart as components, as in a reading."""


def write_phantoms(
    out: Path,
    seeds: Iterable[int],
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    nodules: tuple[int, int] = (1, 6),
) -> Iterator[Path]:
    """Writes one case for each seed: ``phantom-<seed>/dicom`` and ``phantom-<seed>/truth.nii.gz``.

    Args:
        out: folder of cases.
        seeds: of the phantoms; the same seed gives the same voxels.
        shape: voxels, (slices, rows, columns).
        spacing_mm: in the same order.
        nodules: least and most nodules of a scan.

    Yields:
        Each case's folder, once it is written.

    Raises:
        OutputError: it cannot be written.
    """
    for seed in seeds:
        phantom = make_phantom(seed, shape, spacing_mm, nodules)
        volume, folder = phantom.volume(), out / f"phantom-{seed}"
        write_ct_series(volume, folder / "dicom")
        truth = np.where(np.asarray(phantom.truth) > 0, LABEL, 0).astype(np.uint8)
        write_mask(folder / TRUTH, truth, volume.grid, slices_first=True)
        yield folder
