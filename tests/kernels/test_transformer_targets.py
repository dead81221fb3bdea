"""The kernels of transformers compile ahead for every architecture that a plan may be made for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = pytest.mark.peer
SCRIPT = Path(__file__).parent / "transformer_targets.py"


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100])
def test_every_kernel_compiles(arch, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, SCRIPT, str(arch)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # linear layers in each type, two of them at once in two, two forms of attention, norm and softmax in three
    assert len(done.stdout.splitlines()) == (5 if arch >= 89 else 4) + 2 + 4 * 3
