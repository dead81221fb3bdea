"""Kernels that CUDA's run-time compiler made are kept on disk, and a damaged one is compiled again."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from wetread.kernels.hopper import driver  # noqa: E402

pytestmark = pytest.mark.peer


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """What is compiled, in order; no compiler and no device are needed."""
    made = []

    def compile_(source, arch, defines):
        made.append((source, arch, tuple(defines)))
        return f"cubin {source} {arch} {defines}".encode()

    monkeypatch.setenv("WETREAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(driver, "_compile", compile_)
    monkeypatch.setattr(driver, "_nvrtc_version", lambda: [13, 0])
    return made


def test_compiles_once(compiled, monkeypatch):
    first = driver.compile_source("a", "sm_90a", ["X=1"])
    assert driver.compile_source("a", "sm_90a", ["X=1"]) == first
    assert len(compiled) == 1
    driver.compile_source("a", "sm_90a", ["X=2"])
    driver.compile_source("b", "sm_90a", ["X=1"])
    monkeypatch.setattr(driver, "_nvrtc_version", lambda: [13, 1])
    driver.compile_source("a", "sm_90a", ["X=1"])
    assert len(compiled) == 4


@pytest.mark.parametrize("cut", [0, 10, 40])
def test_a_damaged_file_is_compiled_again(compiled, tmp_path, cut):
    first = driver.compile_source("a", "sm_90a")
    (path,) = (tmp_path / "cache" / "kernels").glob("*.cubin")
    path.write_bytes(path.read_bytes()[:cut])
    assert driver.compile_source("a", "sm_90a") == first and len(compiled) == 2
    assert driver.compile_source("a", "sm_90a") == first and len(compiled) == 2


def test_a_cache_that_cannot_be_written_only_costs_time(compiled, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WETREAD_CACHE", str(tmp_path / "file"))
    assert driver.compile_source("a", "sm_90a") and driver.compile_source("a", "sm_90a")
    assert len(compiled) == 2
