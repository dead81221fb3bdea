"""``wetread pack``: what does not fit is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import networks
from wetread.build import fit
from wetread.build.pack import pack
from wetread.engines import make_engine
from wetread.errors import EngineUnavailableError, GateError, GraphError, PackageError, RecipeError
from wetread.package import Package
from wetread.recipe import Channel, Label, Recipe, Tiling

TILING = Tiling(window=(16, 16, 16), stride=(8, 8, 8))


def recipe(**changes) -> Recipe:
    facts = {
        "name": "tiny",
        "channels": (Channel(name="ct"),),
        "tiling": TILING,
        "labels": (Label(index=1, name="bright", channels=(1,)),),
    }
    return Recipe(**{**facts, **changes})


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return networks.save(networks.unet(), tmp_path / "net.onnx")


def test_pack_and_read_back(network: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(recipe().model_dump_json())
    card = tmp_path / "card.md"
    card.write_text("# What it is")
    package = pack(network, file, tmp_path / "out", card=card)
    assert package.path == tmp_path / "out" / "tiny" / "1.0.0"
    assert package.recipe == recipe()
    assert [s.name for s in package.manifest.sources] == ["net.onnx", "recipe.json"]
    assert set(package.manifest.tools) == {"wetread", "onnx"}
    assert package.models[0].inputs[0].shape == (None, 1, None, None, None)
    assert (package.path / "card.md").read_text() == "# What it is"
    x = np.random.default_rng(0).standard_normal((1, 1, 16, 16, 16)).astype(np.float32)
    results = []
    for source in (Package.open(package.path), network):
        engine = make_engine(source)
        out = np.full((1, 2, 16, 16, 16), np.nan, np.float32)
        with engine.context((16, 16, 16)) as context:
            context.submit((x,), (out,)).wait()
        results.append(out)
    np.testing.assert_array_equal(*results)


def test_same_input_same_package(network: Path, tmp_path: Path) -> None:
    a, b = (pack(network, recipe(), tmp_path / name) for name in "ab")
    assert a.hash == b.hash
    assert (a.path / "manifest.json").read_bytes() == (b.path / "manifest.json").read_bytes()


def test_paths_of_the_exporting_machine_are_left_out(tmp_path: Path) -> None:
    model = networks.unet()
    model.graph.node[0].doc_string = "/home/someone/train.py"
    package = pack(networks.save(model, tmp_path / "net.onnx"), recipe(), tmp_path / "out")
    assert not [
        f
        for f in package.path.iterdir()
        if b"someone" in f.read_bytes() or str(tmp_path).encode() in f.read_bytes()
    ]


def test_external_weights_are_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(networks.unet(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    package = pack(path, recipe(), tmp_path / "out")
    assert (
        package.hash
        == pack(networks.save(networks.unet(), tmp_path / "b.onnx"), recipe(), tmp_path / "b").hash
    )


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"channels": (Channel(name="a"), Channel(name="b"))},
            r"recipe has 2 channels \(a, b\), the network takes 1",
        ),
        ({"labels": (Label(index=1, name="x", channels=(2,)),)}, r"returns 2 channels.*read channel 2"),
        ({"tiling": Tiling(window=(15, 16, 16), stride=(8, 8, 8))}, r"\(15, 16, 16\)"),
    ],
)
def test_recipes_that_do_not_fit(
    network: Path,
    tmp_path: Path,
    changes: dict,
    message: str,
    installed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not installed:
        _hide_openvino(monkeypatch)
    with pytest.raises((RecipeError, GraphError), match=message):
        pack(network, recipe(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _hide_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: str) -> None:
        raise EngineUnavailableError("not here")

    monkeypatch.setattr(fit, "resolve", gone)


def test_without_openvino_shapes_are_inferred(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pack(network, recipe(), tmp_path / "a").hash
    _hide_openvino(monkeypatch)
    assert pack(network, recipe(), tmp_path / "b").hash == expected


def test_fixed_windows(tmp_path: Path) -> None:
    path = networks.save(networks.unet(window=(16, 16, 32), batch=1), tmp_path / "net.onnx")
    with pytest.raises(RecipeError, match=r"fixed at \(16, 16, 32\).*\(16, 16, 16\)"):
        pack(path, recipe(), tmp_path / "out")
    with pytest.raises(RecipeError, match="the whole volume"):
        pack(path, recipe(tiling=Tiling(kind="whole")), tmp_path / "out")
    fitting = Tiling(window=(16, 16, 32), stride=(8, 8, 8))
    assert pack(path, recipe(tiling=fitting), tmp_path / "out").version == "1.0.0"


def test_whole_volumes(network: Path, tmp_path: Path) -> None:
    assert pack(network, recipe(tiling=Tiling(kind="whole", multiple=(2, 2, 2))), tmp_path / "out")


def test_outputs_of_another_size(tmp_path: Path) -> None:
    b = networks.Builder()
    x = b.conv("image", (1, 2), stride=2)
    model = b.model({"image": (None, 1, *networks.FREE)}, {"out": (x, (None, 2, *networks.FREE))})
    with pytest.raises(RecipeError, match=r"\(8, 8, 8\) voxels"):
        pack(networks.save(model, tmp_path / "n.onnx"), recipe(), tmp_path / "out")


def test_two_outputs(tmp_path: Path) -> None:
    model = networks.unet()
    model.graph.output.append(onnx.helper.make_tensor_value_info("conv_0", 1, [None, 8, None, None, None]))
    with pytest.raises(RecipeError, match="1 inputs and 2 outputs"):
        pack(networks.save(model, tmp_path / "n.onnx"), recipe(), tmp_path / "out")


def test_networks_that_return_nan(tmp_path: Path) -> None:
    b = networks.Builder()
    minus = b.constant(np.array(-5, np.float32), "minus")
    x = b.add("Log", [b.add("Add", [b.conv("image", (1, 2)), minus])])
    model = b.model({"image": (None, 1, *networks.FREE)}, {"out": (x, (None, 2, *networks.FREE))})
    with pytest.raises(RecipeError, match="NaN"):
        pack(networks.save(model, tmp_path / "n.onnx"), recipe(), tmp_path / "out")


def test_damaged_files(network: Path, tmp_path: Path) -> None:
    network.write_bytes(network.read_bytes()[:1000])
    with pytest.raises(GraphError, match=r"net\.onnx"):
        pack(network, recipe(), tmp_path / "out")
    bad = tmp_path / "recipe.json"
    bad.write_text("{")
    with pytest.raises(RecipeError, match=r"recipe\.json"):
        pack(network, bad, tmp_path / "out")
    with pytest.raises(PackageError, match=r"card\.md"):
        pack(networks.save(networks.unet(), network), recipe(), tmp_path / "out", card=tmp_path / "card.md")
    assert not (tmp_path / "out").exists()


def test_existing_version(network: Path, tmp_path: Path) -> None:
    pack(network, recipe(), tmp_path)
    with pytest.raises(PackageError, match="--force"):
        pack(network, recipe(), tmp_path)
    assert pack(network, recipe(description="b"), tmp_path, force=True).recipe.description == "b"


def test_engines_of_a_package_ask_its_gate(network: Path, tmp_path: Path) -> None:
    package = pack(network, recipe(), tmp_path / "out")
    assert make_engine(package).info.precision == "float32"
    assert make_engine(package, "reference").info.precision == "float64"
    assert make_engine(package, "null").info.backend == "null"
    with pytest.raises(PackageError, match="1 networks"):
        make_engine(package, model=1)
    try:
        engine = make_engine(package, precision="bfloat16", override_gate=True)
    except EngineUnavailableError:
        return
    assert package.check_gate("openvino", engine.info.precision, override=True).status == "overridden"
    with pytest.raises(GateError, match="bfloat16"):
        make_engine(package, precision="bfloat16")
