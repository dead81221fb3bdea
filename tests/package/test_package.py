"""Packages on disk: written whole, verified when opened, found by path and by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests import networks
from wetread.errors import GateError, OutputError, PackageError, RecipeError
from wetread.package import (
    Contents,
    GateRecord,
    NetworkFile,
    Package,
    ShapeProfile,
    SourceEntry,
    TensorEntry,
    bytes_sha256,
    embedded_names,
    file_sha256,
    write_package,
)
from wetread.package import package as package_module
from wetread.package.manifest import ModelEntry, package_hash
from wetread.recipe import Channel, Label, Recipe, Tiling

CONTENT = networks.threshold().SerializeToString(deterministic=True)


def recipe(version: str = "1.0.0", **changes) -> Recipe:
    return Recipe(
        name="tiny",
        version=version,
        channels=(Channel(name="ct"),),
        tiling=Tiling(window=(16, 16, 16), stride=(8, 8, 8)),
        labels=(Label(index=1, name="bright", channels=(1,)),),
        **changes,
    )


def network(content: bytes = CONTENT, **changes) -> NetworkFile:
    facts = {
        "precision": "float32",
        "inputs": (TensorEntry(name="image", shape=(None, 1, None, None, None), dtype="float32"),),
        "outputs": (TensorEntry(name="logits", shape=(None, 2, None, None, None), dtype="float32"),),
    }
    return NetworkFile(content, **{**facts, **changes})


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return write_package(
        tmp_path / "models",
        recipe(),
        [network()],
        Contents(
            files={"card.md": b"# Tiny\n"},
            sources=[SourceEntry(name="net.onnx", sha256=bytes_sha256(CONTENT), bytes=len(CONTENT))],
            tools={"wetread": "0.1.0"},
        ),
    )


def edit(path: Path, **changes) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def test_layout(package: Package, tmp_path: Path) -> None:
    assert package.path == tmp_path / "models" / "tiny" / "1.0.0"
    names = sorted(p.name for p in package.path.iterdir())
    assert names == ["card.md", "gate.json", "manifest.json", "model.onnx", "recipe.json"]
    assert package.model_path().read_bytes() == CONTENT
    assert (package.name, package.version, package.precision) == ("tiny", "1.0.0", "float32")
    assert package.recipe == recipe()
    assert [s.name for s in package.manifest.sources] == ["net.onnx"]


def test_nothing_is_left_beside_it(package: Package) -> None:
    assert [p.name for p in package.path.parent.iterdir()] == ["1.0.0"]


def test_same_input_gives_the_same_bytes(package: Package, tmp_path: Path) -> None:
    made = package.manifest
    again = write_package(
        tmp_path / "b",
        recipe(),
        [network()],
        Contents(files={"card.md": b"# Tiny\n"}, sources=made.sources, tools=made.tools),
    )
    assert again.hash == package.hash
    for file in package.path.iterdir():
        assert (again.path / file.name).read_bytes() == file.read_bytes()


def test_hash_covers_models_and_recipe_and_nothing_else(tmp_path: Path) -> None:
    base = write_package(tmp_path / "a", recipe(), [network()]).hash
    assert len(base) == 64
    assert (
        write_package(
            tmp_path / "b", recipe(), [network()], Contents(files={"card.md": b"x"}, tools={"a": "1"})
        ).hash
        == base
    )
    assert write_package(tmp_path / "c", recipe(description="x"), [network()]).hash != base
    other = networks.threshold(cut=0.6).SerializeToString(deterministic=True)
    assert write_package(tmp_path / "d", recipe(), [network(other)]).hash != base
    assert write_package(tmp_path / "e", recipe(), [network(fold=1)]).hash != base


def test_hash_is_stable_across_versions(tmp_path: Path) -> None:
    """A change of this value makes every gate and every pinned package invalid: it needs a format of its own."""
    entries = write_package(tmp_path, recipe(), [network(b"abc")]).models
    assert (
        package_hash("0" * 64, entries) == "00ea96a37dc364913b38ae13bef62e9356d373d0d2b535ae83cf074dfb82436c"
    )


@pytest.mark.parametrize("how", ["directory", "parent", "text", "trailing"])
def test_open_by_path(package: Package, how: str) -> None:
    path: Path | str = {
        "directory": package.path,
        "parent": package.path.parent,
        "text": str(package.path),
        "trailing": f"{package.path}/",
    }[how]
    assert Package.open(path).hash == package.hash


def test_parent_means_the_highest_version(tmp_path: Path) -> None:
    for version in ("1.9.0", "1.10.0", "1.2.3"):
        write_package(tmp_path, recipe(version), [network()])
    (tmp_path / "tiny" / "9.9.9").mkdir()  # no package, only its name
    assert Package.open(tmp_path / "tiny").version == "1.10.0"


@pytest.mark.parametrize("file", ["model.onnx", "recipe.json", "card.md"])
def test_a_changed_file_is_named_with_both_hashes(package: Package, file: str) -> None:
    path = package.path / file
    expected = file_sha256(path)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(PackageError) as caught:
        Package.open(package.path)
    text = str(caught.value)
    assert file in text
    assert expected in text
    assert file_sha256(path) in text


@pytest.mark.parametrize("file", ["model.onnx", "recipe.json", "card.md", "manifest.json", "gate.json"])
def test_a_missing_file_is_named(package: Package, file: str) -> None:
    (package.path / file).unlink()
    with pytest.raises(PackageError, match=file.replace(".", r"\.")):
        Package.open(package.path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 2}'])
@pytest.mark.parametrize("file", ["manifest.json", "gate.json"])
def test_damaged_json_is_named(package: Package, file: str, content: bytes) -> None:
    (package.path / file).write_bytes(content)
    with pytest.raises(PackageError, match=file.replace(".", r"\.")):
        Package.open(package.path)


def test_unknown_keys_are_refused(package: Package) -> None:
    edit(package.path / "manifest.json", surprise=1)
    with pytest.raises(PackageError, match="surprise"):
        Package.open(package.path)


def test_a_hash_that_is_not_that_of_its_files(package: Package) -> None:
    edit(package.path / "manifest.json", hash="0" * 64)
    with pytest.raises(PackageError, match=f"{package.hash}.*0000"):
        Package.open(package.path)


@pytest.mark.parametrize(
    "name", ["../outside.onnx", "/etc/passwd", "a/../../b", "engines/x", "recipe.json", "C:\\x"]
)
def test_files_outside_the_package_are_refused(package: Package, name: str) -> None:
    data = json.loads((package.path / "manifest.json").read_text())
    data["models"][0]["file"] = name
    edit(package.path / "manifest.json", models=data["models"])
    with pytest.raises(PackageError, match="models"):
        Package.open(package.path)


def test_links_that_lead_out_are_refused(package: Package, tmp_path: Path) -> None:
    package.model_path().rename(tmp_path / "elsewhere")
    (package.path / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageError, match="leads out"):
        Package.open(package.path)


def test_a_gate_of_another_package_does_not_count(package: Package, tmp_path: Path) -> None:
    other = write_package(tmp_path / "o", recipe(description="other"), [network()])
    shutil.copy(other.path / "gate.json", package.path / "gate.json")
    with pytest.raises(PackageError, match=other.hash):
        Package.open(package.path)


def test_a_recipe_of_another_name(package: Package, tmp_path: Path) -> None:
    edit(package.path / "manifest.json", name="other")
    with pytest.raises(PackageError, match=r"tiny 1\.0\.0, .*other 1\.0\.0"):
        Package.open(package.path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no package"):
        Package.open(tmp_path / "none")
    with pytest.raises(PackageError, match=r"manifest\.json"):
        Package.open(tmp_path)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(PackageError, match=r"manifest\.json"):
        Package.open(file)


def test_existing_versions_stay(package: Package) -> None:
    before = {p.name: p.read_bytes() for p in package.path.iterdir()}
    with pytest.raises(PackageError, match="exists already"):
        write_package(package.path.parents[1], recipe(description="new"), [network()])
    assert {p.name: p.read_bytes() for p in package.path.iterdir()} == before


def test_force_replaces(package: Package) -> None:
    new = write_package(package.path.parents[1], recipe(description="new"), [network()], force=True)
    assert new.path == package.path
    assert new.hash != package.hash
    assert Package.open(package.path).recipe.description == "new"
    assert [p.name for p in package.path.parent.iterdir()] == ["1.0.0"]


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up at the third file."""
    calls = 0

    def full(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_package(tmp_path / "models", recipe(), [network()])
    assert [p.name for p in (tmp_path / "models" / "tiny").iterdir()] == []


def test_a_failure_while_replacing_keeps_the_old(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OutputError, match="Input/output"):
        write_package(package.path.parents[1], recipe(description="new"), [network()], force=True)
    assert Package.open(package.path).hash == package.hash
    assert [p.name for p in package.path.parent.iterdir()] == ["1.0.0"]


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("x")
    with pytest.raises(OutputError):
        write_package(tmp_path / "models", recipe(), [network()])


def test_ensembles(tmp_path: Path) -> None:
    contents = [networks.threshold(cut=c).SerializeToString(deterministic=True) for c in (0.4, 0.5, 0.6)]
    networks_ = [network(content, fold=fold) for fold, content in enumerate(contents)]
    package = write_package(tmp_path / "a", recipe(), networks_[::-1])
    assert [m.file for m in package.models] == [f"models/stage0_fold{k}.onnx" for k in range(3)]
    assert [package.model_path(k).read_bytes() for k in range(3)] == contents
    assert write_package(tmp_path / "b", recipe(), networks_).hash == package.hash
    with pytest.raises(PackageError, match="own stage and fold"):
        write_package(tmp_path / "c", recipe(), [network(), network()])
    with pytest.raises(PackageError, match="at least one"):
        write_package(tmp_path / "d", recipe(), [])


def test_float32_is_the_reference_on_every_backend(package: Package) -> None:
    for backend in ("openvino", "onnxruntime", "cuda"):
        verdict = package.check_gate(backend, "float32")
        assert verdict.status == "reference"
        assert backend in verdict.text
    assert package.check_gate("reference", "float64").status == "reference"


def test_other_precisions_need_a_gate(package: Package) -> None:
    with pytest.raises(GateError, match="no gate has been run for openvino in int8"):
        package.check_gate("openvino", "int8")
    verdict = package.check_gate("openvino", "int8", override=True)
    assert verdict.status == "overridden"
    assert "override" in verdict.text
    passed = package.with_gate(
        GateRecord(
            backend="openvino", precision="int8", status="passed", cases=50, figures={"mean_dice_drop": 0.002}
        )
    )
    assert passed.check_gate("openvino", "int8").text == "openvino in int8: passed (mean_dice_drop 0.002)"
    assert Package.open(package.path).check_gate("openvino", "int8").status == "passed"
    with pytest.raises(GateError):
        passed.check_gate("tensorrt", "int8")
    with pytest.raises(GateError):
        passed.check_gate("openvino", "float16")


def test_a_failed_gate_refuses_and_the_last_record_counts(package: Package) -> None:
    record = GateRecord(
        backend="openvino", precision="int8", status="failed", figures={"mean_dice_drop": 0.03}
    )
    failed = package.with_gate(record)
    with pytest.raises(GateError, match=r"the gate failed \(mean_dice_drop 0\.03\)"):
        failed.check_gate("openvino", "int8")
    assert "the gate failed" in failed.check_gate("openvino", "int8", override=True).text
    passed = failed.with_gate(record.model_copy(update={"status": "passed"}))
    assert passed.check_gate("openvino", "int8").status == "passed"
    assert passed.hash == package.hash


def test_a_backend_that_fails_in_float32_is_refused_although_float32_is_the_reference(
    package: Package,
) -> None:
    failed = package.with_gate(GateRecord(backend="cuda", precision="float32", status="failed"))
    with pytest.raises(GateError):
        failed.check_gate("cuda", "float32")
    assert failed.check_gate("openvino", "float32").status == "reference"


def test_quantised_networks_get_no_reference(tmp_path: Path) -> None:
    package = write_package(tmp_path, recipe(), [network(precision="int8")])
    assert package.precision == "int8"
    with pytest.raises(GateError):
        package.check_gate("openvino", "int8")


def test_gate_that_cannot_be_written(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = (package.path / "gate.json").read_bytes()
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space"):
        package.with_gate(GateRecord(backend="x", precision="int8", status="passed"))
    assert (package.path / "gate.json").read_bytes() == before
    assert not list(package.path.glob(".gate*"))


def test_cache_lies_in_the_package_outside_the_hash(package: Package) -> None:
    folder = package.cache_dir("openvino-2026.4-cpu")
    assert folder == package.path / "engines" / "openvino-2026.4-cpu"
    (folder / "plan.blob").write_bytes(b"x")
    assert Package.open(package.path).hash == package.hash


def test_cache_lies_elsewhere_where_the_package_is_read_only(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package.path / "engines").write_text("no folder can be made here")
    monkeypatch.setenv("WETREAD_CACHE", str(tmp_path / "cache"))
    assert package.cache_dir("cpu") == tmp_path / "cache" / package.hash[:16] / "cpu"
    (tmp_path / "cache").rename(tmp_path / "gone")
    (tmp_path / "cache").write_text("nor here")
    assert package.cache_dir("cpu") is None


@pytest.mark.parametrize("fingerprint", ["", "../x", "a/b", ".hidden", "x" * 200])
def test_fingerprints_are_plain_names(package: Package, fingerprint: str) -> None:
    with pytest.raises(PackageError, match="fingerprint"):
        package.cache_dir(fingerprint)


def test_embedded_packages(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_module, "_embedded_folder", lambda: package.path.parents[1])
    monkeypatch.setattr(package_module, "DEFAULT", "tiny")
    assert embedded_names() == ["tiny"]
    assert (
        Package.open("tiny").hash == Package.embedded("tiny").hash == Package.default().hash == package.hash
    )
    with pytest.raises(PackageError, match="no embedded package 'huge'; there are: tiny"):
        Package.embedded("huge")
    with pytest.raises(PackageError, match="embedded: tiny"):
        Package.open("huge")
    for name in ("../models", "..", "tiny/1.0.0"):
        with pytest.raises(PackageError):
            Package.embedded(name)


def test_recipe_in_the_package_is_strict(package: Package) -> None:
    """A recipe with an unknown key, though its hash be right, is refused."""
    path = package.path / "recipe.json"
    edit(path, surprise=1)
    data = json.loads((package.path / "manifest.json").read_text())
    data["recipe_sha256"] = file_sha256(path)
    data["hash"] = package_hash(data["recipe_sha256"], [ModelEntry.model_validate(m) for m in data["models"]])
    edit(package.path / "manifest.json", **data)
    with pytest.raises(RecipeError, match="surprise"):
        Package.open(package.path)


def _device(package: Package, status: str = "passed", plan: bytes | None = None) -> Package:
    """The package with a gate of its own for one device."""
    record = GateRecord(backend="openvino", precision="int8", status=status, cases=3)
    if plan is not None:
        folder = package.cache_dir("openvino-1-int8-x")
        assert folder is not None
        (folder / "net.plan").write_bytes(plan)
    return package.with_device_gate(
        "openvino-1-int8-x", record, {"cases": []}, ["net.plan"] if plan is not None else []
    )


def test_the_devices_own_gate_counts_before_the_summary(package: Package) -> None:
    passed = _device(package)
    assert passed.check_gate("openvino", "int8", fingerprint="openvino-1-int8-x").status == "passed"
    failed = _device(package, "failed").with_gate(
        GateRecord(backend="openvino", precision="int8", status="passed", cases=9)
    )
    with pytest.raises(GateError, match="the gate failed"):
        failed.check_gate("openvino", "int8", fingerprint="openvino-1-int8-x")
    assert failed.check_gate("openvino", "int8", fingerprint="another").status == "passed"


def test_a_devices_gate_speaks_of_this_package_and_plan(package: Package) -> None:
    made = _device(package, plan=b"plan")
    assert made.device_gate("openvino-1-int8-x") is not None
    folder = package.path / "engines" / "openvino-1-int8-x"
    (folder / "net.plan").write_bytes(b"another")
    with pytest.raises(GateError, match=r"another plan than net\.plan") as caught:
        made.check_gate("openvino", "int8", fingerprint="openvino-1-int8-x")
    assert "net.plan" in caught.value.where
    verdict = made.check_gate("openvino", "int8", override=True, fingerprint="openvino-1-int8-x")
    assert verdict.status == "overridden" and "another plan" in verdict.text
    edit(folder / "gate.json", package="0" * 64, plans={})
    with pytest.raises(GateError, match="speaks of package 0000"):
        made.check_gate("openvino", "int8", fingerprint="openvino-1-int8-x")


def test_no_device_gate_can_be_written_anywhere(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Package, "cache_dir", lambda *_: None)
    with pytest.raises(OutputError, match="neither the package nor the cache"):
        _device(package)


def test_a_read_only_package_keeps_its_summary(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WETREAD_CACHE", str(tmp_path / "cache"))
    (package.path / "engines").write_text("in the way, as on a read-only disk")

    def refused(*_: object) -> None:
        raise OutputError("read-only")

    monkeypatch.setattr(Package, "with_gate", refused)
    made = _device(package)
    assert made.check_gate("openvino", "int8", fingerprint="openvino-1-int8-x").status == "passed"
    with pytest.raises(GateError, match="no gate has been run"):
        made.check_gate("openvino", "int8", fingerprint="another")


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("32x64x64", ((32, 64, 64),) * 3),
        ("16x16x16:32x32x32:64x64x64", ((16,) * 3, (32,) * 3, (64,) * 3)),
    ],
)
def test_shape_profiles(text: str, shapes: tuple) -> None:
    found = ShapeProfile.parse(text)
    assert (found.min, found.opt, found.max) == shapes


@pytest.mark.parametrize("text", ["", "32", "32x32", "64x64x64:32x32x32:96x96x96", "0x8x8", "a:b:c"])
def test_shape_profiles_that_are_none(text: str) -> None:
    with pytest.raises(RecipeError, match="min:opt:max"):
        ShapeProfile.parse(text)


def test_files_keep_out_of_each_others_way(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="two files of the package are called recipe"):
        write_package(tmp_path, recipe(), [network()], Contents(files={"recipe.json": b"{}"}))
