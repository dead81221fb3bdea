"""Networks and weights of MONAI's bundles, in each of their forms."""

import json
import shutil

import numpy as np
import pytest

from tests.importers.bundles import configuration, description, write_bundle
from wetread.build.importers import ImportOptions, import_model
from wetread.errors import GraphError, RecipeError
from wetread.graph.evaluate import evaluate

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore"),  # torch's and MONAI's own
]
torch = pytest.importorskip("torch")
nets = pytest.importorskip("monai.networks.nets")

UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
CONFIG = configuration(
    network_def={"_target_": "UNet", **UNET},
    inferer={"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]},
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nets.UNet(**UNET).eval()


@pytest.fixture
def bundle(tmp_path, network):
    folder = write_bundle(tmp_path / "bundle", description(["background", "liver"]), CONFIG)
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def assert_agrees(imported, network):
    graph = imported.networks[0].graph
    assert imported.recipe.tiling.window == (16, 16, 16)
    image = np.random.default_rng(0).normal(size=(1, 1, 16, 16, 16)).astype(np.float32)
    found = evaluate(graph, {graph.inputs[0].name: image})[graph.outputs[0].name]
    with torch.no_grad():
        expected = network(torch.from_numpy(image)).numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_zip(tmp_path, bundle, network):
    archive = shutil.make_archive(str(tmp_path / "downloaded"), "zip", tmp_path, "bundle")
    imported = import_model(archive)
    assert_agrees(imported, network)
    assert "monai" in imported.tools
    assert [path.name for path in imported.sources] == ["downloaded.zip"]


def test_torchscript_weights(bundle, network):
    (bundle / "models" / "model.pt").unlink()
    torch.jit.trace(network, torch.zeros(1, 1, 16, 16, 16)).save(bundle / "models" / "model.ts")
    assert_agrees(import_model(bundle), network)


def test_torchscript_that_carries_its_configuration(tmp_path, network):
    extra = {
        "metadata.json": json.dumps(description(["background", "liver"])),
        "inference.json": json.dumps(CONFIG),
    }
    path = tmp_path / "model.ts"
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 1, 16, 16, 16)), path, extra)
    assert_agrees(import_model(path), network)


def test_networks_of_the_bundle_itself_are_not_executed(bundle):
    witness = bundle / "witness"
    for target in ("scripts.net.Mine", "os.mkdir", "monai.networks.nets.os", "monai.utils.misc.run_cmd"):
        config = CONFIG | {"network_def": {"_target_": target, "path": str(witness)}}
        (bundle / "configs" / "inference.json").write_text(json.dumps(config))
        with pytest.raises(GraphError, match=r"none of monai\.networks\.nets"):
            import_model(bundle)
    assert not witness.exists()


def test_weights_that_do_not_fit_are_named(bundle, network):
    state = network.state_dict()
    name = next(iter(state))
    cases = {
        "are missing": {key: value for key, value in state.items() if key != name},
        "are not the network's": state | {"head.weight": torch.zeros(3)},
        "have another shape": state | {name: torch.zeros(7)},
    }
    for says, weights in cases.items():
        torch.save(weights, bundle / "models" / "model.pt")
        with pytest.raises(GraphError, match=says) as caught:
            import_model(bundle)
        assert "model.pt" in caught.value.where


def test_pickled_and_truncated_weights_are_refused(bundle, network):
    weights = bundle / "models" / "model.pt"
    torch.save({"model": network}, weights)
    with pytest.raises(GraphError, match=r"imports .*monai\.networks\.nets\.unet\.UNet"):
        import_model(bundle)
    torch.save(network.state_dict(), weights)
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(GraphError, match="whole") as caught:
        import_model(bundle)
    assert "model.pt" in caught.value.where


def test_expressions_are_evaluated_with_trust_only(bundle, network):
    config = CONFIG | {"spacing": "$[float(x) for x in '1.5 1.5 2'.split()]"}
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="is not computed") as caught:
        import_model(bundle)
    assert caught.value.code == "NEEDS_TRUST"
    imported = import_model(bundle, ImportOptions(trust=True))
    assert imported.recipe.resample.spacing_mm == (1.5, 1.5, 2.0)
    assert_agrees(imported, network)


def test_a_recipe_that_is_given_needs_none_derived(bundle):
    config = CONFIG | {"preprocessing": "$mine()"}
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    imported = import_model(bundle, ImportOptions(derive=False, window=(16, 16, 16)))
    assert imported.recipe is None
    assert imported.networks[0].graph.inputs[0].shape == (None, 1, 16, 16, 16)
