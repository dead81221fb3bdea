"""Reading a chest CT from DICOM folder to all outputs, against pydicom + MONAI + eager PyTorch.

    python benchmarks/read_case.py [STUDY] [--out docs/benchmarks] [--repeat 3]

Every run is a process of its own, so that peak memory is its own; variants take turns. Times start after the
imports of each side's libraries and include loading the network. Three variants of one network and blending:

- wetread: `wetread.read` and `wetread.save`: all outputs (mask, SEG, SR, CSV, HTML, PNG, JSON).
- peer, same windows: pydicom, MONAI's transforms, MONAI's SlidingWindowInferer in eager PyTorch, padded so that
  its windows coincide with wetread's; windows that wetread skips are not run. Writes a mask as NIfTI, no more.
- peer, body: the same, but it runs all windows that touch the body.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
NOTE = "The masks differ where MONAI samples from the first voxel and wetread on its lattice (half a voxel apart). "
VARIANTS = ("wetread", "peer, same windows", "peer, body")


def run_wetread(study: Path, folder: Path) -> dict[str, object]:
    """All outputs into the folder; the probability-free mask for comparison."""
    import highdicom
    import openvino

    import wetread
    import wetread.report

    _ = highdicom, openvino
    started = time.perf_counter()
    reading = wetread.read(study, json.loads((folder / "plan.json").read_text())["package"])
    wetread.save(reading, folder / "out")
    seconds = time.perf_counter() - started
    np.save(folder / "mask.npy", reading.mask)
    stages = {k: round(v, 3) for k, v in reading.timings_s.items()}
    return {
        "seconds": seconds,
        "windows": reading.provenance.windows_run,
        "skipped": reading.provenance.windows_skipped,
        "stages_s": stages,
        "findings": len(reading.findings),
    }


def run_peer(study: Path, folder: Path, body: bool) -> dict[str, object]:
    """The same reading with pydicom, MONAI and eager PyTorch."""
    import nibabel
    import pydicom
    import torch
    from monai.data import MetaTensor
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import (
        Compose,
        EnsureChannelFirst,
        Orientation,
        ScaleIntensityRange,
        Spacing,
        SpatialResample,
    )

    from wetread.bench.peers.torch_network import TorchNetwork
    from wetread.graph import Graph

    plan = json.loads((folder / "plan.json").read_text())
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    started = time.perf_counter()
    files = [pydicom.dcmread(path) for path in sorted(study.rglob("*")) if path.is_file()]
    files = sorted((f for f in files if "ImagePositionPatient" in f), key=lambda f: f.ImagePositionPatient[2])
    hu = np.stack(
        [f.pixel_array * np.float32(f.RescaleSlope) + np.float32(f.RescaleIntercept) for f in files]
    )
    row, column = (float(x) for x in files[0].PixelSpacing)
    step = float(files[1].ImagePositionPatient[2] - files[0].ImagePositionPatient[2])
    x0, y0, z0 = (float(v) for v in files[0].ImagePositionPatient)
    affine = np.diag([-column, -row, step, 1.0])
    affine[:3, 3] = (-x0, -y0, z0)
    image = MetaTensor(torch.from_numpy(hu.transpose(2, 1, 0)), affine=torch.from_numpy(affine))
    spacing = Spacing((1.0, 1.0, 1.0), mode="bilinear", padding_mode="border")
    steps = Compose(
        [
            EnsureChannelFirst(channel_dim="no_channel"),
            Orientation("LPS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            ScaleIntensityRange(-600.0, 400.0, 0.0, 1.0, clip=True),
            spacing,
        ]
    )
    resampled = steps(image)
    prepared = resampled[0].permute(2, 1, 0)  # [z, y, x]
    network = TorchNetwork(Graph.load(Path(plan["model"]))).eval()
    window = tuple(plan["window"])
    # pad so that the windows are wetread's: the lattice starts `offset` voxels before the volume
    offset, padded = plan["offset"], plan["padded"]
    pads = [(o, max(0, p - o - n)) for o, p, n in zip(offset, padded, prepared.shape, strict=True)]
    flat = [n for pair in reversed(pads) for n in pair]
    volume = torch.nn.functional.pad(prepared.as_tensor()[None, None], flat)
    volume = volume[:, :, : padded[0], : padded[1], : padded[2]]
    wanted = {tuple(start) for start in plan["body" if body else "run"]}
    ran = 0

    def predict(patch: torch.Tensor, coordinates: list[object]) -> torch.Tensor:
        nonlocal ran
        start = tuple(int(s.start) for s in coordinates[0][2:])
        if start not in wanted:
            return torch.full_like(patch, -20.0)
        ran += 1
        return network(patch)

    inferer = SlidingWindowInferer(
        window,
        sw_batch_size=1,
        overlap=[1 - s / w for s, w in zip(plan["stride"], window, strict=True)],
        mode="gaussian",
        sigma_scale=plan["sigma"],
        with_coord=True,
    )
    with torch.inference_mode():
        logits = inferer(volume, predict)[0]
        inside = tuple(slice(o, o + n) for o, n in zip(offset, prepared.shape, strict=True))
        probability = torch.sigmoid(torch.as_tensor(logits[(slice(None), *inside)])).permute(0, 3, 2, 1)
        back = SpatialResample(mode="bilinear", padding_mode="border")(
            MetaTensor(probability, affine=resampled.affine),
            dst_affine=image.affine,
            spatial_size=hu.shape[::-1],
        )[0]
    mask = (back.as_tensor() > plan["threshold"]).numpy().astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(mask, affine), folder / "peer.nii.gz")
    seconds = time.perf_counter() - started
    np.save(folder / "mask.npy", mask.transpose(2, 1, 0))
    return {"seconds": seconds, "windows": ran, "skipped": 0, "stages_s": {}, "findings": None}


def make_plan(study: Path, name: str) -> dict[str, object]:
    """Where wetread's windows lie, which it runs, and which touch the body."""
    from wetread.inference import Sweep
    from wetread.inference.prepare import prepared_grid
    from wetread.inference.windows import plan_windows
    from wetread.package import Package
    from wetread.reading.source import open_source

    package = Package.open(name)
    recipe = package.recipe
    with open_source(study) as source:
        volume = source.load(0).volume
    grid = prepared_grid(recipe, volume.grid)
    plan = plan_windows(recipe, grid)
    starts = [tuple(axis.starts) for axis in plan.axes]
    offset = [-min(s) for s in starts]
    padded = [max(s) + w - min(s) for s, w in zip(starts, plan.shape, strict=True)]
    data = {
        "package": str(package.path),
        "model": str(package.model_path(0)),
        "window": list(plan.shape),
        "stride": list(recipe.tiling.stride),
        "sigma": recipe.tiling.sigma,
        "threshold": recipe.labels[0].threshold,
        "offset": offset,
        "padded": padded,
        "all": len(plan),
    }
    for key, kind in (("run", recipe.place.kind), ("body", "body")):
        place = recipe.place.model_copy(
            update={"kind": kind} | ({"margin_mm": 0.0} if kind == "body" else {})
        )
        sweep = Sweep(recipe.model_copy(update={"place": place}), volume.grid, 1, modality="CT")
        sweep.add(0, volume.voxels)
        data[key] = [[int(s + o) for s, o in zip(w.start, offset, strict=True)] for w in sweep.ready()]
    return data


def child(variant: str, study: Path, folder: Path) -> None:
    """One run in this process; the result goes to standard output as JSON."""
    if variant == "wetread":
        result = run_wetread(study, folder)
    else:
        result = run_peer(study, folder, body=variant.endswith("body"))
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps(result))


def launch(variant: str, study: Path, folder: Path) -> dict[str, object]:
    """Runs a variant in a process of its own."""
    command = [sys.executable, __file__, str(study), "--child", variant, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{variant} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.split("RESULT ")[-1])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a ∩ b| / (|a| + |b|) of two masks; 1 where both are empty."""
    total = int((a > 0).sum() + (b > 0).sum())
    return 1.0 if total == 0 else float(2 * ((a > 0) & (b > 0)).sum() / total)


def main() -> None:
    """Runs the variants in turn and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = (
        Path(os.environ.get("WETREAD_TEST_DATA", ROOT.parent / "shared" / "data"))
        / "lidc-idri-0314"
        / "dicom"
    )
    parser.add_argument("study", type=Path, nargs="?", default=default)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--package", default="lung-nodule")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--child", choices=VARIANTS)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.study, args.folder)
        return
    results: dict[str, list[dict[str, object]]] = {name: [] for name in VARIANTS}
    agreement: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        plan = make_plan(args.study, args.package)
        for repetition in range(args.repeat):
            masks = {}
            for name in VARIANTS:
                folder = Path(temporary) / f"{repetition}-{VARIANTS.index(name)}"
                folder.mkdir()
                (folder / "plan.json").write_text(json.dumps(plan))
                result = launch(name, args.study, folder)
                results[name].append(result)
                masks[name] = np.load(folder / "mask.npy")
                print(f"{name}: {result['seconds']:.2f} s, {result['windows']} windows", flush=True)
            for name in VARIANTS:
                agreement[name] = dice(masks["wetread"], masks[name])
    report(args, plan, results, agreement)


def report(
    args: argparse.Namespace, plan: dict[str, object], results: dict[str, list], agreement: dict
) -> None:
    """Prints and writes the table."""
    ours = common.summary([r["seconds"] for r in results["wetread"]])["median_s"]
    rows, data = [], []
    for name in VARIANTS:
        times = common.summary([r["seconds"] for r in results[name]])
        peak = max(r["peak_mib"] for r in results[name])
        row = {
            "variant": name,
            **times,
            "windows": results[name][0]["windows"],
            "peak_memory_mib": round(peak),
            "wetread_over_this": round(ours / times["median_s"], 3),
            "mask_dice_against_wetread": round(agreement[name], 4),
        }
        data.append(row)
        rows.append(
            {
                "variant": name,
                "median s (min–max)": f"{times['median_s']:.2f} ({times['min_s']:.2f}–{times['max_s']:.2f})",
                "windows": row["windows"],
                "peak MiB": row["peak_memory_mib"],
                "wetread's time / this": f"{row['wetread_over_this']:.2f}",
                "mask Dice with wetread": f"{row['mask_dice_against_wetread']:.4f}",
            }
        )
    info = common.machine("wetread", "openvino", "torch", "monai", "pydicom", "highdicom", "numpy")
    stages = results["wetread"][-1]["stages_s"]
    text = (
        f"{common.table(rows)}\n\n{args.repeat} runs each, in turn, each in its own process; times start after the "
        f"imports and include loading the network. wetread writes all outputs, the peer a mask alone. {NOTE}Of "
        f"{plan['all']} windows of {plan['window']} voxels, {len(plan['run'])} touch the recipe's place and "
        f"{len(plan['body'])} the body.\n\nStages of wetread's last run (s): "
        + ", ".join(f"{k} {v}" for k, v in stages.items())
        + f".\n\nMachine: {info['processor']}, {info['cores']} cores, {info['memory_gib']} GiB; versions "
        + ", ".join(f"{k} {v}" for k, v in info["versions"].items())
        + f"; {info['date']}."
    )
    print(text)
    title = "Reading a chest CT, from DICOM folder to outputs"
    common.write(args.out, "read_case", title, {"rows": data, "stages_s": stages, "machine": info}, text)


if __name__ == "__main__":
    main()
