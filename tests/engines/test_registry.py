"""Which backends there are."""

from __future__ import annotations

import pytest

from tests import networks
from wetread.engines import BACKENDS, available, make_engine, resolve
from wetread.engines import registry as registry_module
from wetread.errors import EngineUnavailableError
from wetread.graph import Graph


def test_auto_becomes_a_named_backend() -> None:
    assert resolve("auto") is BACKENDS["openvino"]
    assert {"openvino", "reference", "null"} <= set(available())


def test_unknown_backend() -> None:
    with pytest.raises(EngineUnavailableError, match=r"no backend 'opnvino'.*openvino, reference"):
        resolve("opnvino")


def test_backend_of_another_version() -> None:
    missing = [name for name in BACKENDS if name not in available()]
    for name in missing:
        with pytest.raises(EngineUnavailableError, match=name):
            resolve(name)


def test_uninstalled_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        registry_module.BACKENDS, "null",
        registry_module.Backend("null", "wetread.engines.null", ("surely_not_there",), "pip install 'wetread[null]'"),
    )  # fmt: skip
    with pytest.raises(EngineUnavailableError, match=r"surely_not_there.*pip install 'wetread\[null\]'"):
        make_engine(Graph(networks.threshold()), "null")


def test_auto_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module.Backend, "installed", lambda self: False)
    with pytest.raises(EngineUnavailableError, match="pip install openvino"):
        resolve("auto")
