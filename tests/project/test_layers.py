"""The layer check passes, and it fails on a planted violation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    environment = {"PYTHONPATH": str(folder / "src"), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [*command, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("packages", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("geometry/resample.py", "import wetread.reading", "Rooms import only from rooms below"),
        ("inference/sweep.py", "import wetread.dicom", "Rooms import only from rooms below"),
        ("report/__init__.py", "import pydicom", "Only dicom imports"),
        ("reading/flow.py", "import onnx", "Only graph imports"),
        ("inference/runner.py", "import openvino", "Only engines.openvino"),
        ("geometry/axes.py", "import torch", "Training frameworks"),
    ],
)
def test_planted_violation_is_caught(copy, file, line, contract):
    path = copy / "src" / "wetread" / file
    path.write_text(path.read_text() + f"\n{line}\n")
    done = lint(copy)
    assert done.returncode != 0
    broken = [text for text in done.stdout.splitlines() if "BROKEN" in text]
    assert any(contract in text for text in broken), done.stdout + done.stderr


def test_the_house_is_in_order(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr
