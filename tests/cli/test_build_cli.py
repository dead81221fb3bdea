"""`wetread build`, `gate`, `inspect` and `phantoms` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.build.test_pipeline import RECIPE, finder, scan
from tests.cli.test_cli import wetread


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its recipe, cases, and a package that was built of them."""
    root = tmp_path_factory.mktemp("cli")
    finder(root / "finder.onnx")
    (root / "recipe.json").write_text(json.dumps(RECIPE))
    for seed in range(2):
        scan(root / "calibrate" / f"c{seed}", seed)
    scan(root / "gate" / "g0", 10, truth=True)
    done = wetread(*BUILD, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "INT8" not in done.stderr and "openvino in int8: passed on 1 held-out case" in done.stdout
    assert "mean Dice drop" in done.stdout and "hash " in done.stdout
    return root


BUILD = (
    *("build", "finder.onnx", "--recipe", "recipe.json", "--calibrate", "calibrate", "--gate", "gate"),
    *("--windows", "4", "--threads", "1", "-o", "models"),
)
PACKAGE = Path("models") / "balls" / "1.0.0"


def test_inspect(work: Path) -> None:
    plain = wetread("inspect", PACKAGE, "--layers", cwd=work)
    assert plain.returncode == 0, plain.stderr
    for text in (
        "balls 1.0.0, int8",
        "batch_norm",
        "BatchNormalization 1 → 0",
        "conv_0 (Conv): int8, quantised",
    ):
        assert text in plain.stdout, plain.stdout
    data = json.loads(wetread("inspect", PACKAGE, "--json", cwd=work).stdout)
    assert data["devices"][0]["table"]["passed"] is True
    assert data["networks"][0]["layers"]["scales"]
    assert data["build"]["calibration"]["calibrator"] == "minmax"
    embedded = json.loads(wetread("inspect", "lung-nodule", "--json", cwd=work).stdout)
    assert embedded["networks"][0]["operators"]["Conv"] > 0 and embedded["build"] == {}


def test_check(work: Path) -> None:
    same = wetread(*BUILD, "--check", cwd=work)
    assert same.returncode == 0, same.stdout + same.stderr
    assert "confirmed" in same.stdout
    other = wetread(*BUILD, "--check", "--windows", "2", "--calibrator", "percentile", "--json", cwd=work)
    assert other.returncode == 22
    assert any(d["what"].startswith("scale of") for d in json.loads(other.stdout)["differences"])


def test_gate_records_on_this_device(work: Path) -> None:
    done = wetread(
        "gate", PACKAGE, "--reference", "finder.onnx", "--cases", "gate", "--threads", "1", "--json", cwd=work
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["passed"] and data["figures"]["cases"] == 1
    refused = wetread("gate", PACKAGE, "--reference", "finder.onnx", "--cases", "calibrate", cwd=work)
    assert refused.returncode == 22 and "calibrated the network" in refused.stderr


def test_a_failed_gate_prints_its_table(work: Path) -> None:
    done = wetread(*BUILD, "--max-dice-drop", "0", "--precision", "fp32", "-o", "elsewhere", cwd=work)
    assert done.returncode == 0, done.stderr  # float32 loses nothing
    wrong = wetread("build", "finder.onnx", "--recipe", "recipe.json", "--precision", "int8", cwd=work)
    assert wrong.returncode == 22 and "--calibrate CASES" in wrong.stderr
    typo = wetread(*BUILD, "--precision", "int4", cwd=work)
    assert typo.returncode == 2 and "int4" in typo.stderr


def test_phantoms_are_cases(work: Path) -> None:
    done = wetread(
        *("phantoms", "-o", "phantoms", "--scans", "2", "--seed", "7"),
        *("--shape", "40x40x48", "--spacing", "5x8x8"),
        cwd=work,
    )
    assert done.returncode == 0, done.stderr
    from wetread.build.cases import case_shelf
    from wetread.package import Package

    shelf = case_shelf(work / "phantoms", Package.default().recipe)
    assert [case.name for case in shelf.cases] == ["phantom-7", "phantom-8"]
    loaded = shelf.load(shelf.cases[0])
    assert loaded.truth is not None and loaded.truth.shape == (40, 40, 48)
    image = loaded.inputs.loaded[0].volume.voxels
    assert loaded.truth.any() and image[loaded.truth > 0].mean() > image[loaded.truth == 0].min() + 200
    assert len(set(shelf.digests().values())) == 2
