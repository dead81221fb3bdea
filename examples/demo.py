"""`make demo`: synthesises a small chest CT as DICOM, reads it with the embedded network, shows the findings."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path


def main() -> None:
    """Makes the study, then does what `wetread read` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    import wetread
    from wetread.bench.phantom import demo_volume
    from wetread.cli import show
    from wetread.dicom import write_ct_series

    if args.out.exists():
        shutil.rmtree(args.out)
    study = args.out / "dicom"
    print(f"synthesising a chest CT in {study} ...")
    volume, nodules = demo_volume(args.seed)
    write_ct_series(volume, study)
    with show.progress() as progress:
        reading = wetread.read(study, progress=progress)
        written = wetread.save(reading, args.out / "reading", progress=progress)
    show.reading(reading, written)
    print(f"the phantom holds {len(nodules)} nodule(s):")
    for nodule in nodules:
        x, y, z = nodule.centre_lps_mm
        print(f"  {nodule.kind}, {nodule.diameter_mm:.1f} mm, centre ({x:.1f}, {y:.1f}, {z:.1f}) mm LPS")


if __name__ == "__main__":
    main()
