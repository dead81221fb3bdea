"""`make demo`: synthesises a small chest CT as DICOM, reads it with the embedded network, shows the findings."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import wetread
from wetread.bench.phantom import make_phantom
from wetread.cli import show
from wetread.dicom import write_ct_series


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
    volume = phantom.volume()
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
