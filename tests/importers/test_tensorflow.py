"""The documented way from TensorFlow: the example runs where TensorFlow is, and what it exports is imported here."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from wetread.build.importers import import_model
from wetread.engines import make_engine
from wetread.graph import verify
from wetread.graph.evaluate import evaluate
from wetread.graph.passes import optimise

pytestmark = pytest.mark.peer
ROOT = Path(__file__).resolve().parents[2]
WINDOW = (32, 32, 32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    python = Path(os.environ.get("WETREAD_TENSORFLOW", ROOT / ".venv-tensorflow" / "bin" / "python"))
    if not python.exists():
        assert not os.environ.get("WETREAD_CI"), f"CI has no {python}: `make venv-tensorflow`"
        pytest.skip(f"there is no {python} with tensorflow and tf2onnx; `make venv-tensorflow` makes it")
    out = tmp_path_factory.mktemp("tensorflow")
    script = ROOT / "examples" / "tensorflow_export.py"
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [python, script, "--out", out], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_the_example_agrees_with_keras(exported):
    graph = import_model(exported / "model.onnx").networks[0].graph
    verify(graph)
    assert graph.inputs[0].shape == (None, 1, *WINDOW), "channels come first"
    assert graph.outputs[0].shape == (None, 2, *WINDOW)
    assert "Transpose" not in graph.operators, "tf2onnx moves them through the network until they cancel"
    example = np.load(exported / "example.npz")
    found = evaluate(graph, {graph.inputs[0].name: example["image"]})[graph.outputs[0].name]
    # float64 against Keras in float32
    assert np.abs(found - example["output"]).max() <= 1e-4 * np.abs(found).max()


def test_what_is_optimised_of_it_agrees_on_an_engine(exported):
    graph, report = optimise(import_model(exported / "model.onnx").networks[0].graph, window=WINDOW)
    assert report.nodes_after < report.nodes_before
    example = np.load(exported / "example.npz")
    found = np.full(example["output"].shape, np.nan, np.float32)
    engine = make_engine(graph, "openvino")
    with engine.context(WINDOW, 2) as context:
        context.submit((example["image"],), (found,)).wait()
    engine.close()
    assert np.abs(found - example["output"]).max() <= 1e-4 * np.abs(found).max()
