"""Fixtures for all tests: real cases, a synthetic study whose answer is known, a network that thresholds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from wetread.volume import Grid, Volume

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("WETREAD_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_case() -> Callable[[str], Path]:
    """Path of a real case; skips, with the reason, where it is not on this machine."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"real case {name} is not here; set WETREAD_TEST_DATA to the folder that has it")
        return path

    return find


def threshold_network(path: Path, hu: float = -280.0) -> Path:
    """A network whose logit is 40 × (scaled intensity − that of `hu`): marks what is denser than `hu`."""
    scaled = (hu + 600.0) / 1000.0
    weight = numpy_helper.from_array(np.full((1, 1, 1, 1, 1), 40.0, np.float32), "w")
    bias = numpy_helper.from_array(np.full((1,), -40.0 * scaled, np.float32), "b")
    free = ["n", 1, "i", "j", "k"]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="threshold", kernel_shape=[1, 1, 1])],
        "threshold",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, free)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, free)],
        [weight, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def ball_recipe(**changes: object) -> dict[str, object]:
    """Recipe for `threshold_network` on CT, windows small enough that a test volume has many."""
    recipe: dict[str, object] = {
        "name": "balls",
        "channels": [{"name": "ct", "select": {"modality": "CT", "min_slices": 4}}],
        "orientation": "SPL",
        "steps": [
            {"step": "clip", "lower": -600, "upper": 400},
            {"step": "scale", "lower": -600, "upper": 400},
            {"step": "resample", "spacing_mm": [1.0, 1.0, 1.0]},
        ],
        "tiling": {"kind": "lattice", "window": [16, 32, 32], "stride": [16, 16, 16]},
        "activation": "sigmoid",
        "labels": [{"index": 1, "name": "ball", "channels": [0]}],
        "lesions": {"connectivity": 26, "min_ml": 0.05},
    }
    return recipe | changes


@pytest.fixture(scope="session")
def ball_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that finds whatever is denser than −280 HU, half-way between ball and clipped lung."""
    from wetread.build.pack import pack

    folder = tmp_path_factory.mktemp("balls")
    network = threshold_network(folder / "model.onnx")
    (folder / "recipe.json").write_text(json.dumps(ball_recipe()))
    return pack(network, folder / "recipe.json", folder / "models").path


BALLS = (  # centre in LPS mm, radius in mm
    ((-20.0, 10.0, 30.0), 8.0),
    ((15.0, -12.0, 42.0), 5.0),
)


def ball_volume(spacing: tuple[float, float, float] = (1.5, 0.8, 0.8)) -> Volume:
    """Two balls of 40 HU in lung of −850 HU, [slice, row, column] in SPL order, about 80 mm across."""
    shape = tuple(round(size / step) for size, step in zip((60.0, 80.0, 80.0), spacing, strict=True))
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing, 1.0
    affine[:3, 3] = (-40.0, -40.0, 5.0)
    grid = Grid(shape, affine, frame_of_reference="1.2.826.0.1.3680043.8.498.1")
    world = grid.world(np.moveaxis(np.indices(shape), 0, -1))
    voxels = np.full(shape, -850, np.int16)
    for centre, radius in BALLS:
        voxels[np.linalg.norm(world - centre, axis=-1) <= radius] = 40
    return Volume(voxels, grid, "CT", ("synthetic",))


@pytest.fixture(scope="session")
def ball_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The balls as a DICOM series."""
    from wetread.dicom import write_ct_series

    folder = tmp_path_factory.mktemp("study") / "dicom"
    write_ct_series(ball_volume(), folder)
    return folder
