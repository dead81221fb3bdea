"""No kernel is left out of the checks that compile ahead; those round a volume compile for every architecture."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import wetread.kernels

pytestmark = pytest.mark.peer
HERE = Path(__file__).parent
DEVICE = Path(wetread.kernels.__file__).parent / "device"


def compiled(function):
    return any("jit" in ast.unparse(mark) for mark in function.decorator_list)


def kernels():
    """(module, name) of every kernel that is launched: compiled by Triton, and called by no other one."""
    found, called = set(), set()
    for file in sorted(DEVICE.glob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and compiled(node):
                found.add((file.stem, node.name))
                inside = {
                    n.func.id
                    for n in ast.walk(node)
                    if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
                }
                called |= inside - {node.name}
    return sorted((module, name) for module, name in found if name not in called)


def test_kernels_are_found():
    assert {("conv", "taps"), ("matmul", "linear"), ("volume", "stitch")} <= set(kernels())
    assert not {name for _, name in kernels()} & {"after_previous", "finish", "read_norm"}


@pytest.mark.parametrize("kernel", kernels(), ids=".".join)
def test_every_kernel_is_compiled_ahead_somewhere(kernel):
    texts = "\n".join(file.read_text() for file in HERE.glob("*targets.py"))
    module, name = kernel
    assert f"{module}.{name}," in texts.replace("\n", ""), f"no targets.py builds {module}.{name}"


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100])
def test_kernels_round_a_volume_compile(arch, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, HERE / "volume_targets.py", str(arch)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 3
