"""The kernels of pooling, resizing and pointwise chains compile ahead for every architecture of a plan."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = pytest.mark.peer
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100])
def test_every_kernel_compiles(arch, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.simple_targets", str(arch)],
        env=environment, capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 4 + 3 * (3 if arch >= 89 else 2)
