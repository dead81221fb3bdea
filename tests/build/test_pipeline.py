"""``wetread build`` on small networks whose answers are known: what comes out, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests import networks
from tests.conftest import ball_recipe
from wetread.build.cases import case_shelf
from wetread.build.check import check_build, compare
from wetread.build.gate import GateOptions, run_gate
from wetread.build.options import BuildOptions, NotPassedError
from wetread.build.pack import pack
from wetread.build.pipeline import build
from wetread.build.regate import RegateOptions, regate
from wetread.build.verdict import GateLimits
from wetread.engines import make_engine
from wetread.errors import GateError, RecipeError
from wetread.nifti import write_mask
from wetread.package import Package, ShapeProfile
from wetread.recipe import Recipe, load_recipe
from wetread.volume import Grid

RECIPE = ball_recipe(
    channels=[{"name": "ct", "select": {"modality": "CT", "min_slices": 4}}],
    steps=[
        {"step": "clip", "lower": -600, "upper": 400},
        {"step": "scale", "lower": -600, "upper": 400},
        {"step": "resample", "spacing_mm": [2.0, 2.0, 2.0]},
    ],
    tiling={"kind": "lattice", "window": [16, 16, 16], "stride": [8, 8, 8]},
)


def finder(path: Path, hidden: int = 6, harsh: bool = False) -> Path:
    """A network of three convolutions that marks dense voxels; batch norms to fold, an identity to remove.

    With ``harsh`` one channel of the middle layer is so much larger than the others, which carry the answer, that
    INT8 with one scale a tensor loses it: that layer must be released. (A magnitude stands between, through which
    channels are not equalised; through a ReLU they are, and nothing needs releasing.)
    """
    b = networks.Builder(3)
    one = np.zeros((hidden, 1, 3, 3, 3), np.float32)
    one[:, 0, 1, 1, 1] = 1.0
    x = conv(b, "image", one, np.full(hidden, 1e-3, np.float32))
    x = batch_norm(b, x, hidden)
    x = b.add("Identity", [x])
    x = b.add("Relu", [x])
    two = np.zeros((hidden, hidden, 3, 3, 3), np.float32)
    for c in range(hidden):
        two[c, c, 1, 1, 1] = 1.0
    if harsh:
        two[0] *= 3000.0
    x = b.add("Abs" if harsh else "Relu", [conv(b, x, two, np.zeros(hidden, np.float32))])
    last = np.zeros((1, hidden, 3, 3, 3), np.float32)
    last[0, 1:, 1, 1, 1] = 40.0 / (hidden - 1)
    x = conv(b, x, last, np.full(1, -40.0 * 0.32, np.float32))
    free = (None, 1, None, None, None)
    return networks.save(b.model({"image": free}, {"logits": (x, free)}), path)


def conv(b: networks.Builder, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
    name = b.name("Conv")
    w, c = b.constant(weight, f"{name}.weight"), b.constant(bias, f"{name}.bias")
    return b.add("Conv", [x, w, c], kernel_shape=[3, 3, 3], pads=[1] * 6)


def batch_norm(b: networks.Builder, x: str, channels: int) -> str:
    name = b.name("BatchNormalization")
    values = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}
    names = [
        b.constant(np.full(channels, value, np.float32), f"{name}.{key}") for key, value in values.items()
    ]
    return b.add("BatchNormalization", [x, *names], epsilon=1e-5)


def scan(folder: Path, seed: int, truth: bool = False) -> Path:
    """A NIfTI scan of lung with noise and three dense balls, and its truth where asked for."""
    rng = np.random.default_rng(seed)
    shape, spacing = (48, 44, 40), 2.0
    affine = np.diag([spacing, spacing, spacing, 1.0])
    voxels = rng.normal(-850, 20, shape)
    where = np.stack(np.indices(shape), -1)
    mask = np.zeros(shape, np.uint8)
    for _ in range(3):
        centre = rng.uniform(8, np.array(shape) - 8)
        mask[np.linalg.norm(where - centre, axis=-1) < rng.uniform(3, 6)] = 1
    voxels[mask > 0] = rng.normal(40, 10, int(mask.sum()))
    import nibabel

    folder.mkdir(parents=True)
    nibabel.save(
        nibabel.Nifti1Image(voxels.astype(np.int16), np.diag([-spacing, -spacing, spacing, 1.0])),
        folder / "ct.nii.gz",
    )
    if truth:
        write_mask(folder / "truth.nii.gz", mask, Grid(shape, affine), slices_first=False)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finder(tmp_path_factory.mktemp("model") / "finder.onnx")


def options(cases: Path, **changes: object) -> BuildOptions:
    base = BuildOptions(
        recipe=load_recipe(RECIPE),
        calibrate=cases / "calibrate",
        gate=cases / "gate",
        per_case=4,
        threads=1,
        engine="openvino",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built(model: Path, cases: Path, tmp_path_factory: pytest.TempPathFactory):
    return build(model, tmp_path_factory.mktemp("built"), options(cases, precision="int8"))


def test_int8_package_with_a_passed_gate(built, cases: Path) -> None:
    package = built.package
    assert package.precision == "int8"
    assert built.gate is not None and built.gate.passed, built.gate.markdown()
    record = package.gate.find("openvino", "int8")
    assert record is not None and record.status == "passed" and record.cases == 2
    engine = make_engine(package)  # loads without an override
    assert engine.info.precision == "int8"
    own = package.device_gate(engine.info.fingerprint)
    assert own is not None and own.table["cases"][1]["truth"] is False
    facts = json.loads((package.path / "build.json").read_text())
    assert "build.json" in package.manifest.files
    assert facts["precision"] == {"asked": "int8", "got": "int8"}
    assert facts["networks"][0]["passes"]["operators_after"].get("BatchNormalization", 0) == 0
    assert len(facts["calibration"]["cases"]) == 2
    assert {case["name"] for case in facts["gate_cases"]} == {"with-truth", "without"}


def test_build_json_holds_no_time_and_no_place(built, cases: Path, tmp_path: Path) -> None:
    text = (built.package.path / "build.json").read_text()
    assert str(cases) not in text and "/tmp" not in text
    assert "2026" not in text


def test_twice_in_two_processes_gives_the_same_bytes(model: Path, cases: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPE))
    hashes = []
    for name, threads in (("a", 1), ("b", 2)):
        done = subprocess.run(
            [
                sys.executable, "-c", "from wetread.cli import main; main()", "build", model, "--recipe", recipe,
                "--precision", "int8", "--calibrate", cases / "calibrate", "--gate", cases / "gate",
                "--windows", "4", "-o", tmp_path / name, "--json", "--threads", str(threads),
            ],
            capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        hashes.append(json.loads(done.stdout)["hash"])
    assert hashes[0] == hashes[1]
    files = [(tmp_path / name / "balls" / "1.0.0" / "build.json").read_bytes() for name in "ab"]
    assert files[0] == files[1]


def test_rollback_releases_the_layer_that_int8_breaks(cases: Path, tmp_path: Path) -> None:
    model = finder(tmp_path / "harsh.onnx", harsh=True)
    made = build(model, tmp_path / "out", options(cases, precision="int8"))
    assert made.gate is not None and made.gate.passed
    released = made.facts["released"]
    assert len(released) == 1
    assert made.facts["ranking"]["layers"][0]["name"] == released[0]
    reads = next(node for node in _nodes(made.package) if node.name == released[0])
    assert reads.op_type == "Conv" and not reads.input[0].endswith("/rounded")
    said = next(notice.text for notice in made.notices if notice.code == "LAYERS_RELEASED")
    assert released[0] in said and "without, the gate fails: " in said


def test_a_candidate_that_will_not_do_is_told_by_one_case(
    built, model: Path, cases: Path, tmp_path: Path
) -> None:
    """The cases that failed before come first, and the gate ends there; without `stop` it reads them all."""
    blind = onnx.load(model)
    blind.graph.initializer[-1].CopyFrom(
        numpy_helper.from_array(np.full(1, -1e3, np.float32), blind.graph.initializer[-1].name)
    )
    recipe = built.package.recipe
    candidate = pack(networks.save(blind, tmp_path / "blind.onnx"), recipe, tmp_path / "blind")
    original = pack(model, recipe, tmp_path / "original")
    shelf = case_shelf(cases / "gate", recipe, 1)
    for last in (0, 1):
        names = [case.name for case in shelf.cases]
        early = GateOptions("openvino", 1, first=(names[last],), stop=True)
        found = run_gate(candidate, original, shelf, options=early)
        assert [score.name for score in found.cases] == [names[last]]
        assert not found.passed and found.notes[0].startswith("ended after 1 of 2 cases")
    whole = run_gate(candidate, original, shelf, options=GateOptions("openvino", 1, first=(names[1],)))
    assert [score.name for score in whole.cases] == names and not whole.notes and not whole.passed


def _nodes(package: Package) -> list[onnx.NodeProto]:
    return list(onnx.load(package.model_path()).graph.node)


def test_nothing_helps(cases: Path, model: Path, tmp_path: Path) -> None:
    limits = GateLimits(max_dice_drop=-1.0)  # nobody can gain that much
    with pytest.raises(NotPassedError) as caught:
        build(model, tmp_path / "out", options(cases, precision="fp32", limits=limits))
    assert "mean Dice drop" in str(caught.value)
    assert caught.value.result.markdown().startswith("openvino in float32: FAILED on 2 held-out cases")
    assert not (tmp_path / "out").exists()


def test_auto_falls_back_and_says_so(model: Path, tmp_path: Path) -> None:
    made = build(model, tmp_path, BuildOptions(recipe=load_recipe(RECIPE), threads=1))
    assert made.package.precision == "float32"
    assert any(notice.code == "PRECISION_AUTO" and "--calibrate" in notice.text for notice in made.notices)
    assert make_engine(made.package).info.precision == "float32"


@pytest.mark.parametrize("precision", ["fp16", "auto"])
def test_other_precisions(precision: str, model: Path, cases: Path, tmp_path: Path) -> None:
    made = build(model, tmp_path, options(cases, precision=precision))
    assert made.gate is not None and made.gate.passed
    assert made.package.precision == {"fp16": "float16", "auto": "int8"}[precision]
    assert make_engine(made.package).info.precision == made.package.precision


def test_int8_without_cases_is_refused(model: Path, cases: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="observe ranges on") as caught:
        build(model, tmp_path, options(cases, precision="int8", calibrate=None))
    assert "--calibrate" in caught.value.todo
    with pytest.raises(GateError, match="judged on") as caught:
        build(model, tmp_path, options(cases, precision="int8", gate=None))
    assert "--no-gate" in caught.value.todo
    with pytest.raises(GateError, match="auto"):
        build(model, tmp_path, options(cases, no_gate=True))


def test_without_a_gate_a_package_loads_by_override_only(model: Path, cases: Path, tmp_path: Path) -> None:
    made = build(model, tmp_path, options(cases, precision="int8", gate=None, no_gate=True))
    with pytest.raises(GateError, match="no gate has been run"):
        make_engine(made.package)
    make_engine(made.package, override_gate=True).close()
    assert any(notice.code == "NO_GATE" for notice in made.notices)


def test_a_case_that_calibrated_is_refused_whatever_its_name(
    model: Path, cases: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "gate" / "renamed"
    folder.mkdir(parents=True)
    import gzip

    packed = (cases / "calibrate" / "c0" / "ct.nii.gz").read_bytes()
    (folder / "other.nii").write_bytes(gzip.decompress(packed))
    with pytest.raises(GateError, match=r"renamed.*same voxels as c0"):
        build(model, tmp_path / "out", options(cases, precision="int8", gate=tmp_path / "gate"))


def test_shapes(model: Path, cases: Path, tmp_path: Path) -> None:
    profile = ShapeProfile.parse("16x16x16:16x16x16:32x32x32")
    made = build(model, tmp_path, options(cases, precision="fp32", shapes=profile))
    assert made.package.manifest.shapes == profile
    assert made.dynamic is not None
    assert made.dynamic.dynamic_ms > 0
    assert "dynamic" not in made.facts  # times are no part of a package that is the same each time
    assert made.package.models[0].inputs[0].shape == (None, 1, None, None, None)
    fixed = build(model, tmp_path, options(cases, precision="fp32", force=True))
    assert fixed.package.models[0].inputs[0].shape == (None, 1, 16, 16, 16)
    with pytest.raises(RecipeError, match="outside the profile"):
        build(model, tmp_path, options(cases, shapes=ShapeProfile.parse("32x32x32"), force=True))
    with pytest.raises(RecipeError, match="min:opt:max"):
        ShapeProfile.parse("32x32")


def test_a_model_without_a_recipe(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="carries no recipe") as caught:
        build(model, tmp_path)
    assert "--recipe" in caught.value.todo


def test_name_and_version(model: Path, cases: Path, tmp_path: Path) -> None:
    made = build(model, tmp_path, options(cases, precision="fp32", gate=None, name="found", version="2.1.0"))
    assert made.package.path == tmp_path / "found" / "2.1.0"


def test_further_outputs_are_cut(cases: Path, tmp_path: Path) -> None:
    file = finder(tmp_path / "deep.onnx")
    deep = onnx.load(file)
    deep.graph.output.append(onnx.helper.make_tensor_value_info("relu_3", 1, [None, 6, None, None, None]))
    onnx.save(deep, file)
    made = build(file, tmp_path, options(cases, precision="fp32", gate=None))
    assert any(notice.code == "OUTPUTS_CUT" and "relu_3" in notice.text for notice in made.notices)
    assert len(made.package.models[0].outputs) == 1


def test_ensembles_are_quantised_fold_by_fold(
    model: Path, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wetread.build import prepare
    from wetread.build.importers import Imported, ImportedNetwork
    from wetread.graph import Graph

    graph = Graph.load(model)
    folds = Imported((ImportedNetwork(graph, 0, 0), ImportedNetwork(graph, 0, 1)), sources=(model,))
    monkeypatch.setattr(prepare, "import_model", lambda *_: folds)
    made = build(model, tmp_path, options(cases, precision="int8"))
    assert [m.fold for m in made.package.models] == [0, 1]
    assert {m.precision for m in made.package.models} == {"int8"}
    assert made.gate is not None and made.gate.passed


def test_check_confirms_and_finds_differences(built, model: Path, cases: Path, tmp_path: Path) -> None:
    out = built.package.path.parents[1]
    found = check_build(model, out, options(cases, precision="int8"))
    assert not found.differences and not found.notes
    other = check_build(finder(tmp_path / "finder.onnx", hidden=5), out, options(cases, precision="int8"))
    assert {"source finder.onnx", "hash"} <= {d.what for d in other.differences}
    failed = check_build(model, out, options(cases, precision="fp32", limits=GateLimits(max_dice_drop=-1.0)))
    assert [d.what for d in failed.differences] == ["verdict"]


def test_scales_may_differ_a_little_elsewhere(built, tmp_path: Path) -> None:
    import shutil

    from wetread.build.check import _scale_differences

    package = built.package
    assert compare(package, package) == ((), ())
    facts = built.facts
    for factor, count in ((1.0005, 0), (1.01, 1)):
        other = json.loads(json.dumps(facts))
        scales = other["networks"][0]["precision"]["scales"]
        name = next(iter(scales))
        scales[name] *= factor
        assert len(_scale_differences(facts, other)) == count
    shutil.copytree(package.path, tmp_path / "copy")


def test_gate_again(built, model: Path, cases: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "1.0.0"
    shutil.copytree(built.package.path, folder)
    shutil.rmtree(folder / "engines")
    package = Package.open(folder)
    with pytest.raises(GateError, match="float32 original"):
        regate(package, cases / "gate")
    with pytest.raises(GateError, match="which calibrated the network"):
        regate(package, cases / "calibrate", RegateOptions(reference=model))
    result = regate(package, cases / "gate", RegateOptions(reference=model, threads=1))
    assert result.passed and not result.notes
    assert Package.open(folder).device_gate(result.engine.fingerprint) is not None
    strict = RegateOptions(reference=model, threads=1, limits=GateLimits(max_dice_drop=-1.0))
    assert not regate(package, cases / "gate", strict).passed
    with pytest.raises(GateError, match="the gate failed"):
        make_engine(Package.open(folder))
    stranger = finder(tmp_path / "stranger.onnx", hidden=4)
    noted = regate(package, cases / "gate", RegateOptions(reference=stranger, threads=1))
    assert "none of the files" in noted.notes[0]


def test_recipe_is_not_changed_by_the_build(built) -> None:
    assert built.package.recipe == Recipe.model_validate(load_recipe(RECIPE).model_dump())
