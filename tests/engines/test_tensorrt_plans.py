"""Plans of the TensorRT backend on disk: kept, refused, built anew, and bound to the gate; over the fakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engines import fake_tensorrt
from tests.engines.machine import Machine
from wetread.engines import make_engine
from wetread.engines.tensorrt import TensorRtEngine
from wetread.errors import GateError
from wetread.package import Package


@pytest.fixture
def package(ball_package: Path, tmp_path: Path) -> Package:
    """A copy, in which plans may be left."""
    import shutil

    target = tmp_path / "balls" / ball_package.name
    shutil.copytree(ball_package, target)
    return Package.open(target)


def engine_of(package: Package) -> TensorRtEngine:
    engine = make_engine(package, "tensorrt")
    assert isinstance(engine, TensorRtEngine)
    return engine


def codes(engine: TensorRtEngine) -> list[str]:
    return [notice.code for notice in engine.notices]


def test_plans_are_kept_beside_what_they_were_made_of(package: Package, machine: Machine) -> None:
    first = engine_of(package)
    assert codes(first) == ["PLAN_BUILT"]
    folder = package.path / "engines" / first.info.fingerprint
    (plan,) = folder.glob("*.plan")
    assert first.plans == (plan.name,)
    record = json.loads((folder / (plan.name + ".json")).read_text())
    assert record["tensorrt"] == "11.4.0.106"
    assert (record["gpu"], record["compute_capability"]) == ("NVIDIA Fake", "9.0")
    assert record["package"] == package.hash
    assert record["options"] == {"workspace_bytes": 2**29, "tf32": False, "strongly_typed": True}
    assert record["shapes"]["opt"] == list(package.recipe.tiling.window)
    second = engine_of(package)
    assert codes(second) == []
    assert second.plans == first.plans
    assert len(machine.called("build")) == 1
    assert Package.open(package.path).hash == package.hash  # outside the hash


def test_timings_are_used_again(package: Package, machine: Machine) -> None:
    engine = engine_of(package)
    engine.context((8, 8, 8)).close()
    assert machine.called("timings") == [(b"", True), (b"11.4.0.106 timings", True)]
    folder = package.path / "engines" / engine.info.fingerprint
    (folder / "timing.cache").write_bytes(b"10.16 timings")
    engine.context((16, 8, 8)).close()
    assert machine.called("timings")[2:] == [(b"10.16 timings", False), (b"", True)]


def damage(package: Package, change: Callable[[dict], None]) -> Path:
    (record,) = (package.path / "engines").glob("*/*.plan.json")
    data = json.loads(record.read_text())
    change(data)
    record.write_text(json.dumps(data))
    return record


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("tensorrt", "10.16.1.11", "the plan is for tensorrt 10.16.1.11, this is 11.4.0.106"),
        ("gpu", "NVIDIA Other", "the plan is for gpu NVIDIA Other, this is NVIDIA Fake"),
        ("compute_capability", "8.6", "compute_capability 8.6, this is 9.0"),
        ("network", "0" * 64, "the plan is for network 0000"),
        ("package", "f" * 64, "the plan is for package ffff"),
        ("plan", "1" * 64, "its record says 1111"),
        ("format", 7, "cannot be read"),
    ],
)
def test_plans_for_something_else_are_refused_and_built_anew(
    package: Package, machine: Machine, field: str, value: object, text: str
) -> None:
    engine_of(package).close()
    damage(package, lambda data: data.update({field: value}))
    engine = engine_of(package)
    assert codes(engine) == ["PLAN_REFUSED", "PLAN_BUILT"]
    assert text in engine.notices[0].text
    assert len(machine.called("build")) == 2
    assert codes(engine_of(package)) == []  # the new plan counts


def test_damaged_plans(package: Package, machine: Machine) -> None:
    engine_of(package).close()
    (plan,) = (package.path / "engines").glob("*/*.plan")
    content = plan.read_bytes()
    for fault in (
        lambda: plan.write_bytes(content[:100]),
        plan.unlink,
        plan.with_name(plan.name + ".json").unlink,
    ):
        fault()
        assert codes(engine_of(package)) == ["PLAN_REFUSED", "PLAN_BUILT"]


def test_a_plan_that_tensorrt_refuses(package: Package, machine: Machine) -> None:
    """Its record may lie: TensorRT has the last word, and its reason is told."""
    engine_of(package).close()
    record = damage(package, lambda data: None)
    plan = record.with_suffix("")
    plan.write_bytes(plan.read_bytes().replace(b"11.4.0.106", b"11.3.0.106", 1))
    from wetread.package import bytes_sha256

    damage(package, lambda data: data.update(plan=bytes_sha256(plan.read_bytes())))
    engine = engine_of(package)
    assert codes(engine) == ["PLAN_REFUSED", "PLAN_BUILT"]
    assert "not compatible with this version" in engine.notices[0].text


def test_another_plan_than_the_gated_one_does_not_load(package: Package, machine: Machine) -> None:
    """The gate of a device speaks of one plan; a rebuilt one has to be gated again."""
    from wetread.package import GateRecord

    engine = engine_of(package)
    record = GateRecord(backend="tensorrt", precision="float32", status="passed", cases=3)
    package = package.with_device_gate(engine.info.fingerprint, record, {}, engine.plans)
    engine_of(package).close()
    (plan,) = (package.path / "engines").glob("*/*.plan")
    plan.write_bytes(plan.read_bytes() + b" ")
    damage(package, lambda data: data.update(gpu="another"))
    with pytest.raises(GateError, match="another plan"):
        plan_rebuilt_differently(machine, package)


def test_a_gate_that_was_run_without_the_plan_does_not_count(package: Package, machine: Machine) -> None:
    """`wetread build` judges a package in a temporary folder, whose plan is not the one that is built here."""
    from wetread.package import GateRecord

    engine = engine_of(package)
    record = GateRecord(backend="tensorrt", precision="float32", status="passed", cases=3)
    package = package.with_device_gate(engine.info.fingerprint, record, {})
    with pytest.raises(GateError, match=r"run without the plan .*\.plan"):
        engine_of(package)
    overridden = make_engine(package, "tensorrt", override_gate=True)
    verdict = package.check_gate("tensorrt", "float32", True, overridden.info.fingerprint, overridden.plans)
    assert verdict.status == "overridden"


def plan_rebuilt_differently(machine: Machine, package: Package) -> None:
    build = fake_tensorrt._Builder.build_serialized_network

    def other(self, network, config):
        return memoryview(bytes(build(self, network, config)).replace(b"{", b'{"again": 1, ', 1))

    fake_tensorrt._Builder.build_serialized_network = other
    try:
        engine_of(package)
    finally:
        fake_tensorrt._Builder.build_serialized_network = build


def test_a_read_only_package_keeps_its_plan_elsewhere(
    package: Package, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WETREAD_CACHE", str(tmp_path / "cache"))
    (package.path / "engines").write_text("not a folder")
    engine_of(package).close()
    assert codes(engine_of(package)) == []
    assert len(list((tmp_path / "cache").rglob("*.plan"))) == 1


def test_a_study_is_read_and_the_reading_says_what_was_built(
    package: Package, machine: Machine, ball_study: Path
) -> None:
    from wetread.reading import ReadOptions, read

    first = read(ball_study, package.path, options=ReadOptions(engine="tensorrt", threads=1))
    again = read(ball_study, package.path, options=ReadOptions(engine="tensorrt", threads=1))
    other = read(ball_study, package.path, options=ReadOptions(engine="openvino", threads=1))
    assert "PLAN_BUILT" in {notice.code for notice in first.notices}
    assert "PLAN_BUILT" not in {notice.code for notice in again.notices}
    np.testing.assert_array_equal(first.mask, other.mask)
    assert len(first.findings) == 2
    assert not machine.cuda.blocks
