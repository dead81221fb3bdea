"""Trained networks in 16 and 8 bits on a GPU against float32 on the same GPU, case by case, and the gate's verdict.

    python benchmarks/accuracy_cuda.py SET.json -o docs/benchmarks/cuda-accuracy.json

SET.json lists networks: {"name", "original": float32 package, "candidates": [packages], "cases": folder}. Both read
through reading's own flow. For each case: Dice of every label's foreground against float32, findings lost and gained,
and where the case has a truth the Dice against it. The float32 reading of the first case is also compared with ONNX
Runtime's on the CPU, so that the GPU's float32 is no judge of itself alone.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wetread.build.cases import CaseShelf, LoadedCase, case_shelf
from wetread.build.gate import Answer, GateOptions, Reader, score_case
from wetread.build.metrics import dice, match
from wetread.build.verdict import GateLimits, GateResult
from wetread.package import Package


def compare(name: str, before: Answer, after: Answer, labels: list[Any]) -> dict[str, Any]:
    """Foreground Dice, and findings of one that no finding of the other meets."""
    a, b = before.mask(), after.mask()
    assert a is not None and b is not None
    first, second = before.lesions(), after.lesions()
    lost = {f.number for f in first.findings} - set(match(first, second).found)
    gained = {f.number for f in second.findings} - set(match(second, first).found)
    return {
        "case": name,
        "dice": dice(a > 0, b > 0),
        "dice_of_labels": {label.name: dice(a == label.index, b == label.index) for label in labels},
        "voxels": [int((a > 0).sum()), int((b > 0).sum())],
        "findings": [len(first.findings), len(second.findings)],
        "lost_mm": [round(f.long_axis_mm, 2) for f in first.findings if f.number in lost],
        "gained_mm": [round(f.long_axis_mm, 2) for f in second.findings if f.number in gained],
    }


def answers(package: Package, shelf: CaseShelf, engine: str, limit: int = 0) -> tuple[dict[str, Answer], Any]:
    """A package's answer to each case on a backend."""
    found: dict[str, Answer] = {}
    with Reader(package, GateOptions(engine)) as reader:
        for case in shelf.cases[: limit or None]:
            loaded: LoadedCase = shelf.load(case)
            found[loaded.name] = Answer.of(reader.read(loaded))
        return found, reader.info


def judge(entry: dict[str, Any], engine: str, cpu: str) -> list[dict[str, Any]]:
    """Rows of one network's candidates."""
    original = Package.open(Path(entry["original"]))
    shelf = case_shelf(Path(entry["cases"]), original.recipe, 0)
    labels = list(original.recipe.labels)
    before, info = answers(original, shelf, engine)
    rows: list[dict[str, Any]] = []
    if cpu:
        there, other = answers(original, shelf, cpu, 1)
        cases = [compare(name, there[name], before[name], labels) for name in there]
        rows.append(
            {"network": entry["name"], "precision": info.precision, "against": other.backend, "cases": cases}
        )
    loaded = {case.name: case for case in map(shelf.load, shelf.cases)}
    for path in entry["candidates"]:
        candidate = Package.open(Path(path))
        after, info = answers(candidate, shelf, engine)
        scores = (score_case(loaded[n], before[n], after[n], candidate.recipe) for n in before)
        result = GateResult(candidate.hash, info, GateLimits(), tuple(scores))
        cases = [compare(name, before[name], after[name], labels) for name in before]
        rows.append({
            "network": entry["name"], "precision": info.precision, "against": f"float32 on {engine}",
            "engine": asdict(info), "cases": cases, "passed": result.passed, "figures": result.figures,
            "failures": list(result.failures),
        })  # fmt: skip
    return rows


def show(row: dict[str, Any]) -> str:
    """One line of the table."""
    worst = min(case["dice"] for case in row["cases"])
    lost = [mm for case in row["cases"] for mm in case["lost_mm"]]
    gained = [mm for case in row["cases"] for mm in case["gained_mm"]]
    verdict = "" if "passed" not in row else ("passed" if row["passed"] else "failed")
    return (
        f"| {row['network']} | {row['precision']} | {row['against']} | {len(row['cases'])} | {worst:.5f} "
        f"| {lost or 'none'} | {gained or 'none'} | {verdict} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--engine", default="cuda")
    parser.add_argument(
        "--cpu", default="onnxruntime", help="backend that checks the first case; empty for none"
    )
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("| network | precision | against | cases | worst Dice | lost, mm | gained, mm | gate |")
    print("|---|---|---|---|---|---|---|---|")
    for entry in json.loads(args.set.read_text()):
        for row in judge(entry, args.engine, args.cpu):
            rows.append(row)
            print(show(row), flush=True)
            args.out.write_text(json.dumps({"python": platform.python_version(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
