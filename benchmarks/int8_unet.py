"""nnU-Net's standard 3D U-Net in INT8 against float32 runtimes, in one run.

    python benchmarks/int8_unet.py [--out docs/benchmarks] [--turns 10] [--threads 2]

Rows: eager PyTorch and TorchScript (the module itself), ONNX Runtime and OpenVINO (its ONNX file), wetread float32
(after wetread's graph passes), wetread INT8 calibrated by min-max, by entropy and by percentile. Windows of
128×128×64 voxels from chest phantoms; calibration and bench take different phantoms. The weights are random, so
Dice and agreement say how far a calibrator strays from float32, and nothing of a trained network. Ends with 1 where
INT8 is less than 4 times as fast as eager PyTorch or less than 2.5 times as fast as OpenVINO (the better of the two
calibrators that are offered first counts). ``--tiny`` runs everything small, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import unet

from wetread.bench.inputs import PHANTOM_SEED, BenchCase
from wetread.bench.phantom import make_phantom
from wetread.bench.rows import Bench
from wetread.bench.run import BenchOptions, run_rows
from wetread.bench.table import markdown, svg
from wetread.bench.task import Task
from wetread.engines.registry import make_engine
from wetread.graph import Graph
from wetread.graph.passes import optimise
from wetread.precision import CalibrationWindow, observe, quantise, quantised_tensors
from wetread.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
CALIBRATORS = {"wetread min-max": "minmax", "wetread entropy": "entropy", "wetread percentile": "percentile"}
TARGETS = {"PyTorch eager float32": 4.0, "OpenVINO float32": 2.5}
INT8 = ("wetread min-max int8", "wetread entropy int8")


def recipe_of(window: tuple[int, int, int]) -> Recipe:
    """CT in Hounsfield units as nnU-Net normalises it, arrays [x, y, z]."""
    labels = [{"index": i, "name": f"label {i}", "channels": [i], "lesion": False} for i in (1, 2)]
    return load_recipe(
        {
            "name": "standard-unet",
            "task": "segmentation",
            "channels": [{"name": "ct", "select": {"modality": "CT"}}],
            "orientation": "LPS",
            "steps": [
                {"step": "clip", "lower": -1000, "upper": 400},
                {"step": "normalise", "mean": -500, "std": 420},
                {"step": "resample", "spacing_mm": [1.6, 1.6, 2.0]},
            ],
            "tiling": {"kind": "fitted", "window": list(window), "stride": [n // 2 for n in window]},
            "place": {"kind": "body", "margin_mm": 0},
            "activation": "softmax",
            "labels": labels,
        }
    )


def phantom_case(recipe: Recipe, seed: int, threads: int) -> BenchCase:
    """One chest phantom."""
    return BenchCase(recipe, f"chest phantom {seed}", (make_phantom(seed).volume(),), threads)


def networks(args: argparse.Namespace, recipe: Recipe, folder: Path) -> dict[str, Path]:
    """The module as ONNX, after the passes, and quantised by each calibrator; says what was done."""
    module = unet.standard_unet(args.features)
    count = sum(p.numel() for p in module.parameters())
    print(f"{count / 1e6:.1f} million parameters, window {args.window}", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the tracer is deprecated, and the only one that keeps the norms whole
        files = {"original": unet.export(module, args.window, folder / "original.onnx")}
    graph, report = optimise(Graph.load(files["original"]), window=args.window)
    print(f"passes: {report.nodes_before} nodes before, {report.nodes_after} after", flush=True)
    files["optimised"] = graph.save(folder / "optimised.onnx")
    windows = [
        CalibrationWindow(f"phantom {seed}", array)
        for seed in range(args.calibration_cases)
        for array in phantom_case(recipe, seed, args.threads).windows(args.calibration_windows)
    ]
    started = time.perf_counter()
    ranges = observe(graph, windows, tensors=quantised_tensors(graph), threads=args.threads)
    print(f"{len(windows)} calibration windows in {time.perf_counter() - started:.0f} s", flush=True)
    for name, calibrator in CALIBRATORS.items():
        quantised, _ = quantise(graph, ranges, calibrator=calibrator)
        files[name] = quantised.save(folder / f"{calibrator}.onnx")
    return files


def tasks_of(args: argparse.Namespace, files: dict[str, Path], folder: Path) -> list[Task]:
    """The rows."""
    factory = folder / "factory.py"
    factory.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'benchmarks')!r})\nfrom unet import standard_unet\n\n\n"
        f"def make():\n    return standard_unet({args.features!r})\n"
    )
    made = f"{factory}:make"

    def row(
        engine: str, kind: str, network: str = "original", precision: str = "float32", own: str = ""
    ) -> Task:
        names = () if own else (str(files[network]),)
        return Task(engine, precision, kind, names, args.window, 1, args.threads, factory=own)

    return [
        row("PyTorch eager", "torch-eager", own=made),
        row("PyTorch TorchScript", "torch-script", own=made),
        row("ONNX Runtime", "onnxruntime"),
        row("OpenVINO", "openvino"),
        row("wetread", "wetread", "optimised"),
        *(row(name, "wetread", name, "int8") for name in CALIBRATORS),
    ]


def not_int8(path: Path, window: tuple[int, int, int], threads: int) -> list[str]:
    """Convolutions and products that the runtime executes in another precision, by its own account."""
    engine = make_engine(path, "openvino", threads=threads)
    with engine.context(window):
        found = [
            f"{layer.name} ({layer.type}, {layer.precision}, {layer.kernel})"
            for layer in engine.layers()
            if layer.type in ("Convolution", "Deconvolution", "MatMul", "FullyConnected")
            and layer.precision != "int8"
        ]
    engine.close()
    return found


def verdict(result: Bench) -> tuple[list[str], bool]:
    """The targets as lines, and whether all are reached."""
    speed = {row.key: row.figures.get("latency_ms_p50") for row in result.rows}
    lines, good = [], True
    for against, target in TARGETS.items():
        ratios = {key: speed[against] / speed[key] for key in INT8 if speed.get(against) and speed.get(key)}
        best = max(ratios.values(), default=0.0)
        good &= best >= target
        told = ", ".join(f"{key} {value:.2f}×" for key, value in ratios.items()) or "not measured"
        lines.append(
            f"- against {against}: {told}; target {target:g}×: {'reached' if best >= target else 'missed'}"
        )
    return lines, good


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibration-cases", type=int, default=4)
    parser.add_argument("--calibration-windows", type=int, default=4, help="of each case")
    parser.add_argument("--window", type=int, nargs=3, default=(128, 128, 64))
    parser.add_argument("--features", type=int, nargs="+", default=unet.FEATURES)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    args.window, args.features = tuple(args.window), tuple(args.features)
    if args.tiny:
        args.window, args.features, args.turns, args.windows = (32, 32, 16), (8, 16, 32), 2, 2
        args.calibration_cases = args.calibration_windows = 1
    recipe = recipe_of(args.window)
    with tempfile.TemporaryDirectory(prefix="int8-unet-") as name:
        folder = Path(name)
        files = networks(args, recipe, folder)
        case = phantom_case(recipe, PHANTOM_SEED, args.threads)
        options = BenchOptions(
            windows=args.windows, turns=args.turns, per_turn=1, threads=args.threads, accuracy_over="windows"
        )
        result = run_rows(tasks_of(args, files, folder), case, case.windows(args.windows), options)
        others = not_int8(files["wetread entropy"], args.window, args.threads)
    lines, good = verdict(result)
    text = markdown(result, "int8-unet.svg").replace(
        "# standard-unet 1.0.0: bench", "# nnU-Net's standard 3D U-Net in INT8"
    )
    text += "\nSpeed of INT8, medians of one run:\n\n" + "\n".join(lines) + "\n\n"
    text += (
        "Convolutions that the runtime does not execute in INT8: " + (", ".join(others) or "none") + ".\n\n"
    )
    text += (
        f"Features {', '.join(map(str, args.features))}; random seeded weights; calibrated on {args.calibration_cases} "
        f"phantoms, {args.calibration_windows} windows of each.\n"
    )
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    data = result.to_json() | {"targets": TARGETS, "reached": good, "not_int8": others}
    (args.out / "int8-unet.json").write_text(json.dumps(data, indent=2) + "\n")
    (args.out / "int8-unet.md").write_text(text)
    (args.out / "int8-unet.svg").write_text(svg(result))
    return 0 if good or args.tiny else 1


if __name__ == "__main__":
    sys.exit(main())
