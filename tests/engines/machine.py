"""A machine with a fake GPU, for the tests of the TensorRT backend; fixtures `machine` and `install`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from tests.engines.fake_cuda import FakeCuda
from tests.engines.fake_tensorrt import FakeTensorRt


@dataclass
class Machine:
    """A machine with a fake GPU."""

    cuda: FakeCuda
    trt: FakeTensorRt

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Machine:
        runtime = self.cuda.module()
        bindings = ModuleType("cuda.bindings")
        bindings.runtime = runtime
        for name, module in {
            "tensorrt": self.trt.module(), "cuda": ModuleType("cuda"), "cuda.bindings": bindings,
            "cuda.bindings.runtime": runtime,
        }.items():  # fmt: skip
            module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)
        return self

    def called(self, name: str) -> list[tuple]:
        return [call[1:] for call in self.trt.calls if call[0] == name]


Install = Callable[..., Machine]
