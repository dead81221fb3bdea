"""What the tuner would try compiles for GPUs that are not here, and fits their shared memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests import networks  # noqa: E402

pytestmark = pytest.mark.peer
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("arch", "network"), [(86, "unet"), (90, "int8"), (100, "unet")])
def test_first_candidates_of_a_network_compile(tmp_path, arch, network):
    """sm_86 has the least shared memory; sm_90 launches before the launch before has ended."""
    made = (
        networks.unet(features=(16, 32), window=(24, 24, 16))
        if network == "unet"
        else networks.int8_chain((16,) * 3)
    )
    path = networks.save(made, tmp_path / "net.onnx")
    window = "24,24,16" if network == "unet" else "16,16,16"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    precision = "float16" if network == "unet" else "int8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.cuda.ahead", path, window, precision, str(arch), "1"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "FAILED" not in done.stdout, done.stdout
    assert "upconv" in done.stdout and " 0 failed" in done.stdout
