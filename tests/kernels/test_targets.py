"""The general kernels compile ahead for every architecture that a plan may be made for, without a device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = pytest.mark.peer
HERE = Path(__file__).parent


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100])
def test_every_kernel_compiles(arch, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, HERE / "targets.py", str(arch)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    # nine kernels in each type; three besides
    kinds = 3 if arch >= 89 else 2
    assert len(done.stdout.splitlines()) == 9 * kinds + 3
