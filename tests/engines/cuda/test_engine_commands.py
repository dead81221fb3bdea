"""The commands on backend cuda as a user types them; on the processor (WETREAD_CUDA_DEVICE=cpu) or a GPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.build.test_pipeline import RECIPE, finder, scan
from tests.cli.test_cli import wetread
from wetread.bench.drive import Worker
from wetread.bench.inputs import open_case
from wetread.bench.task import Task
from wetread.package import Package

pytestmark = pytest.mark.peer

DEVICE = os.environ.get("WETREAD_TEST_DEVICE", "cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, cases, and a float32 package of it."""
    root = tmp_path_factory.mktemp("cuda")
    finder(root / "finder.onnx")
    (root / "recipe.json").write_text(json.dumps(RECIPE))
    for seed in range(2):
        scan(root / "calibrate" / f"c{seed}", seed)
    scan(root / "gate" / "g0", 10, truth=True)
    done = wetread("pack", "finder.onnx", "recipe.json", cwd=root)
    assert done.returncode == 0, done.stderr
    return root


PACKAGE = Path("models") / "balls" / "1.0.0"


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    monkeypatch.setenv("WETREAD_CUDA_DEVICE", DEVICE)
    monkeypatch.setenv("WETREAD_CACHE", str(work / "cache"))


def test_inspect_needs_no_gpu(work: Path) -> None:
    shown = wetread("inspect", PACKAGE, "--backend", "cuda", "--precision", "float16", cwd=work)
    assert shown.returncode == 0, shown.stderr
    assert "cuda in float16, windows of 16×16×16" in shown.stdout
    assert "0 of them by torch" in shown.stdout
    found = json.loads(wetread("inspect", PACKAGE, "--backend", "cuda", "--json", cwd=work).stdout)
    (entry,) = found
    assert entry["precision"] == "float32" and entry["arena_bytes"] > 0
    assert [step["native"] for step in entry["steps"]] == [True] * len(entry["steps"])
    assert {"conv_0"} <= {node for step in entry["steps"] for node in step["nodes"]}
    other = wetread("inspect", PACKAGE, "--backend", "openvino", "--layers", cwd=work)
    assert "Convolution" in other.stdout and "float32" in other.stdout


def test_a_precision_loads_once_its_gate_was_passed(work: Path) -> None:
    read = (
        "read",
        "gate/g0/ct.nii.gz",
        "-m",
        PACKAGE,
        "--engine",
        "cuda",
        "--precision",
        "float16",
        "--force",
    )
    before = wetread(*read, cwd=work)
    assert before.returncode == 22 and "no gate has been run for cuda in float16" in before.stderr
    judged = wetread(
        "gate", PACKAGE, "--cases", "gate", "--engine", "cuda", "--precision", "float16", "--json", cwd=work
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr
    table = json.loads(judged.stdout)
    assert table["passed"] is True
    (folder,) = (work / PACKAGE / "engines").glob("cuda-*float16*")
    assert json.loads((folder / "gate.json").read_text())["plans"]
    after = wetread(*read, "-o", "out", cwd=work)
    assert after.returncode == 0, after.stderr
    assert "cuda in float16: passed" in (work / "out" / "reading.json").read_text()
    shown = wetread("inspect", PACKAGE, "--backend", "cuda", "--precision", "float16", "--layers", cwd=work)
    assert "conv_0" in shown.stdout and "no device yet" not in shown.stdout


def test_build_for_this_backend(work: Path) -> None:
    """Quantised, judged on backend cuda, and recorded as such."""
    done = wetread(
        *("build", "finder.onnx", "--recipe", "recipe.json", "--calibrate", "calibrate", "--gate", "gate"),
        *("--windows", "4", "--threads", "1", "-o", "built", "--engine", "cuda"),
        cwd=work,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cuda in int8: passed on 1 held-out case" in done.stdout


def test_a_row_of_the_bench(work: Path, tmp_path: Path) -> None:
    package = Package.open(work / PACKAGE)
    case = open_case(package.recipe, work / "gate" / "g0" / "ct.nii.gz", 1)
    windows = case.windows(2)
    task = Task(
        "wetread cuda", "float16", "wetread", (str(package.model_path()),), (16, 16, 16), 1, 1, str(package.path),
        "cuda", "float16", allow_failed_gate=True,
    )  # fmt: skip
    with Worker(task, tmp_path, windows, 200) as worker:
        assert worker.ready["layers"] == {"float16": worker.ready["layers"]["float16"]}
        assert worker.ready["device_memory_mib"] > 0
        assert len(worker.run([0, 1])) == 2
