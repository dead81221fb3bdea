"""Fixtures for tests of engines: machines with a fake GPU."""

from __future__ import annotations

import pytest

from tests.engines.fake_cuda import FakeCuda
from tests.engines.fake_tensorrt import FakeTensorRt
from tests.engines.machine import Install, Machine


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    cuda = FakeCuda()
    return Machine(cuda, FakeTensorRt(cuda)).install(monkeypatch)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    def make(version: str = "11.4.0.106", **options: int) -> Machine:
        cuda = FakeCuda(**options)
        return Machine(cuda, FakeTensorRt(cuda, version)).install(monkeypatch)

    return make
