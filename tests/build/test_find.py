"""Which importer takes a model, and what it says where none does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import networks
from wetread.build.importers import import_model
from wetread.errors import GraphError


def test_an_onnx_file_is_one_network_without_a_recipe(tmp_path: Path) -> None:
    path = networks.save(networks.unet(), tmp_path / "net.onnx")
    found = import_model(path)
    assert found.recipe is None
    assert found.sources == (path,)
    assert [(n.stage, n.fold) for n in found.networks] == [(0, 0)]
    assert found.networks[0].graph.operators["Conv"] > 0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="no such file") as caught:
        import_model(tmp_path / "net.onnx")
    assert "net.onnx" in str(caught.value.where)


def test_an_unknown_format_is_refused_and_the_known_ones_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    path.write_bytes(b"\0" * 64)
    with pytest.raises(GraphError, match="no format") as caught:
        import_model(path)
    assert ".onnx" in str(caught.value.todo)
