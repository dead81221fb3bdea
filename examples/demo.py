"""`make demo`: synthesises a small chest CT as DICOM, reads it with the embedded network, shows the findings."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

import wetread
from wetread.bench.phantom import Phantom, make_phantom
from wetread.cli import show
from wetread.dicom import write_ct_series
from wetread.volume import Grid, Volume


def as_volume(phantom: Phantom) -> Volume:
    """The phantom in the patient's coordinates, its middle at the origin."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = phantom.spacing_mm
    affine[3, 3] = 1.0
    affine[:3, 3] = [-s * n / 2 for s, n in zip(phantom.spacing_mm, phantom.hu.shape, strict=True)][::-1]
    grid = Grid(phantom.hu.shape, affine, frame_of_reference=f"2.25.{10_000 + phantom.seed}")
    return Volume(phantom.hu, grid, "CT", ("phantom",))


def main() -> None:
    """Makes the study, then does what `wetread read` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    study, result = args.out / "dicom", args.out / "reading"
    for ours in (study, result):
        shutil.rmtree(ours, ignore_errors=True)
    print(f"synthesising a chest CT in {study} ...")
    phantom = make_phantom(args.seed)
    volume = as_volume(phantom)
    write_ct_series(volume, study)
    with show.progress() as progress:
        reading = wetread.read(study, progress=progress)
        written = wetread.save(reading, result, progress=progress)
    show.reading(reading, written)
    print(f"what the phantom holds ({len(phantom.nodules)} nodules):")
    for nodule in phantom.nodules:
        x, y, z = volume.grid.world(nodule.centre_voxel)
        print(f"  {nodule.kind}, {nodule.diameter_mm:.1f} mm, centre {x:.1f}, {y:.1f}, {z:.1f} mm LPS")


if __name__ == "__main__":
    main()
