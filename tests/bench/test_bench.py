"""The bench itself: rows in processes of their own, on small networks."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from tests import networks
from tests.conftest import ball_recipe, ball_volume, threshold_network
from wetread.bench import inputs, run
from wetread.bench.accuracy import read_windows
from wetread.bench.drive import RowFailedError, Worker, take_turns
from wetread.bench.inputs import BenchCase, open_case
from wetread.bench.run import BenchOptions, bench_package, find_original, plan_rows, run_rows
from wetread.bench.task import Task
from wetread.build.pack import pack
from wetread.errors import PackageError, SelectionError
from wetread.package import Package
from wetread.recipe import Recipe, load_recipe

WINDOW = (16, 32, 32)
QUICK = BenchOptions(windows=2, turns=2, per_turn=1, threads=1, timeout_s=120)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    volume = ball_volume()
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.grid.affine[:, [2, 1, 0, 3]]
    path = tmp_path_factory.mktemp("case") / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume.voxels.transpose(2, 1, 0), ras), path)
    return path


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(ball_recipe())


@pytest.fixture(scope="module")
def case(recipe, study) -> BenchCase:
    return open_case(recipe, study, 1)


def task(network: Path, kind: str = "wetread", **more: object) -> Task:
    names = {"wetread": "wetread", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    plain = {
        "engine": names.get(kind, kind),
        "precision": "float32",
        "kind": kind,
        "networks": (str(network),),
    }
    return Task(**(plain | {"window": WINDOW, "channels": 1, "threads": 1} | more))


def test_windows_are_those_of_a_reading(case, recipe):
    windows = case.windows(3)
    assert windows.shape == (3, 1, *WINDOW) and windows.std() > 0
    assert windows.min() >= 0 and windows.max() <= 1  # clipped and scaled


def test_windows_of_one_value_are_passed_over(case, recipe):
    """Most windows of the balls hold lung alone, which the recipe clips to 0."""
    windows = case.windows(100)
    everything = len(case.sweep(1).ready())
    assert 0 < len(windows) < everything and windows.std(axis=(1, 2, 3, 4)).min() > 0.01
    volume = ball_volume()
    flat = type(volume)(np.full_like(volume.voxels, -850), volume.grid, "CT", ("flat",))
    with pytest.raises(SelectionError, match="holds one value"):
        BenchCase(recipe, "flat", (flat,)).windows(2)


def test_a_phantom_where_no_case_is_named(recipe, monkeypatch):
    small = partial(inputs.make_phantom, shape=(32, 48, 56), spacing_mm=(7.0, 5.5, 5.5))
    monkeypatch.setattr(inputs, "make_phantom", small)
    case = open_case(recipe, None, 1)
    assert case.windows(2).std() > 0.05


def test_a_case_without_the_place(tmp_path, ball_study):
    lungs = load_recipe(ball_recipe(place={"kind": "lungs", "margin_mm": 0}, orientation="SPL"))
    volume = ball_volume()
    air = type(volume)(np.full_like(volume.voxels, -1000), volume.grid, "CT", ("air",))
    with pytest.raises(SelectionError, match="no window"):
        BenchCase(lungs, "air", (air,)).windows(2)


def test_rows_agree_and_are_timed(tmp_path, case, study):
    network = threshold_network(tmp_path / "model.onnx")
    tasks = [task(network, kind) for kind in ("onnxruntime", "openvino", "wetread")]
    result = run_rows(tasks, case, case.windows(2), QUICK)
    assert [row.key for row in result.rows] == ["ONNX Runtime float32", "OpenVINO float32", "wetread float32"]
    assert result.compared_with == "ONNX Runtime float32" and result.case["accuracy_over"] == "the whole case"
    for row in result.rows:
        assert not row.problem, row.problem
        figures = row.figures
        assert figures["windows_timed"] == 2 and 0 < figures["latency_ms_p25"] <= figures["latency_ms_p95"]
        assert figures["dice"] == 1.0 and figures["agreement"] == 1.0 and figures["output_difference"] < 1e-5
        assert figures["peak_memory_mib"] > 10 and figures["size_mib"] == pytest.approx(
            network.stat().st_size / 2**20, abs=1e-3
        )


def test_a_float32_row_that_computes_something_else_is_not_timed(tmp_path, case):
    """Planted: the weights of one row's network are 1 % off."""
    good = threshold_network(tmp_path / "good.onnx")
    import onnx

    model = onnx.load(good)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(weight), weight.name))
    bad = networks.save(model, tmp_path / "bad.onnx")
    result = run_rows([task(good, "onnxruntime"), task(bad, "wetread")], case, case.windows(2), QUICK)
    assert not result.rows[0].problem
    assert "differ from ONNX Runtime float32" in result.rows[1].problem and not result.rows[1].figures


def test_dice_is_that_of_two_readings(tmp_path, case, study):
    """A threshold moved by 300 HU marks more; Dice must be that of the two masks that `wetread.read` gives."""
    import wetread

    folders = {hu: tmp_path / str(hu) for hu in (-280, -580)}
    masks = {}
    for hu, folder in folders.items():
        folder.mkdir()
        network = threshold_network(folder / "model.onnx", hu)
        masks[hu] = wetread.read(study, pack(network, case.recipe, folder / "models")).mask > 0
    a, b = masks.values()
    expected = 2 * (a & b).sum() / (a.sum() + b.sum())
    tasks = [
        task(folders[-280] / "model.onnx", "onnxruntime"),
        task(folders[-580] / "model.onnx", "openvino", engine="other", precision="int8"),
    ]
    result = run_rows(tasks, case, case.windows(2), QUICK)
    # the reading drops components under 0.05 ml, of which this volume has none
    assert result.rows[1].figures["dice"] == pytest.approx(expected, abs=1e-6)
    assert result.rows[1].figures["agreement"] == pytest.approx(float((a == b).mean()), abs=1e-6)


def test_labels_of_windows(recipe):
    outputs = np.random.default_rng(0).normal(size=(3, 1, 4, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(read_windows(recipe, outputs), (outputs[:, 0] >= 0).astype(np.uint8))


def test_classifiers_are_measured(tmp_path, study):
    labels = [{"index": i + 1, "name": n, "channels": [i], "lesion": False} for i, n in enumerate("abc")]
    parsed = load_recipe(ball_recipe(task="classification", activation="softmax", labels=labels))
    network = networks.save(networks.classifier(), tmp_path / "model.onnx")
    case = open_case(parsed, study, 1)
    result = run_rows(
        [task(network, kind) for kind in ("onnxruntime", "wetread")], case, case.windows(2), QUICK
    )
    for row in result.rows:
        assert not row.problem, row.problem
        assert row.figures["dice"] is None and row.figures["agreement"] == 1.0


def test_folds_are_averaged(tmp_path, case):
    files = [networks.save(networks.unet((1, 1), seed=s), tmp_path / f"{s}.onnx") for s in (0, 1)]
    both = task(files[0], "onnxruntime", networks=tuple(map(str, files)))
    arrays = case.windows(1)
    found = []
    for number, item in enumerate((task(files[0], "onnxruntime"), task(files[1], "onnxruntime"), both)):
        with Worker(item, tmp_path / f"w{number}", arrays) as worker:
            found.append(np.array(worker.output(0)))
    np.testing.assert_allclose(found[2], (found[0] + found[1]) / 2, atol=1e-6)


def test_an_array_runs_as_a_window_does(tmp_path, case):
    arrays = case.windows(2)
    network = networks.save(networks.unet((1, 1)), tmp_path / "m.onnx")
    with Worker(task(network, "onnxruntime"), tmp_path / "w", arrays) as worker:
        expected = np.array(worker.output(1))
        np.testing.assert_array_equal(worker.output(arrays[1]), expected)
        assert not np.array_equal(worker.output(0), expected)


def test_a_row_that_cannot_start_says_why(tmp_path, case):
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(RowFailedError, match="cannot read the network") as caught:
        Worker(task(tmp_path / "bad.onnx"), tmp_path / "w", case.windows(1))
    assert caught.value.code == "GRAPH"
    with pytest.raises(RowFailedError, match="computes in float32, the row says int8"):
        Worker(
            task(threshold_network(tmp_path / "m.onnx"), precision="int8"), tmp_path / "w2", case.windows(1)
        )


def test_a_library_that_is_missing_is_named(tmp_path, case, monkeypatch):
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "onnxruntime.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'onnxruntime'\", name='onnxruntime')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hide"))
    network = threshold_network(tmp_path / "m.onnx")
    result = run_rows([task(network, "onnxruntime"), task(network)], case, case.windows(1), QUICK)
    assert "onnxruntime is not installed" in result.rows[0].problem
    assert not result.rows[1].problem and result.compared_with == "wetread float32"


def test_a_worker_that_is_killed_falls_out(tmp_path, case):
    network = threshold_network(tmp_path / "m.onnx")
    arrays = case.windows(1)
    with (
        Worker(task(network, "onnxruntime"), tmp_path / "a", arrays) as victim,
        Worker(task(network), tmp_path / "b", arrays) as other,
    ):
        victim._process.kill()
        timed = take_turns([victim, other], 1, turns=2, per_turn=1)
    assert "signal 9" in str(timed.failed["ONNX Runtime float32"])
    assert list(timed.seconds) == ["wetread float32"] and len(timed.seconds["wetread float32"]) == 2


def test_rows_take_turns_and_rotate():
    order = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.task = task(Path(name), engine=name)

        def run(self, windows: list[int]) -> list[float]:
            order.append((self.task.engine, *windows))
            return [0.001] * len(windows)

    timed = take_turns([Fake("a"), Fake("b")], windows=3, turns=2, per_turn=2)
    counted = list(order[2:])  # the first two are the warm-up
    assert [entry[0] for entry in counted] == ["a", "b", "b", "a"]
    assert [entry[1:] for entry in counted] == [(0, 1), (0, 1), (2, 0), (2, 0)]
    assert all(len(seconds) == 4 for seconds in timed.seconds.values())


def test_rows_that_are_known_not_to_run(tmp_path, ball_package):
    package = Package.open(ball_package)
    tasks, absent = plan_rows(package, find_original(package, QUICK, tmp_path), QUICK, WINDOW)
    assert [t.key for t in tasks][:5] == [
        "PyTorch eager float32", "PyTorch TorchScript float32", "ONNX Runtime float32", "OpenVINO float32",
        "wetread float32",
    ]  # fmt: skip
    problems = {row.key: row.problem for row in absent}
    assert "wetread build --precision int8" in problems["wetread int8"]


def test_rows_of_gpus(tmp_path, ball_package, monkeypatch):
    """A float32 network is measured in float32 and in float16 where the backend computes it so."""
    monkeypatch.setattr(run, "resolve", lambda name: None)
    package = Package.open(ball_package)
    tasks, _ = plan_rows(package, find_original(package, QUICK, tmp_path), QUICK, WINDOW)
    found = {task.key: task for task in tasks if task.backend in ("cuda", "tensorrt")}
    assert list(found) == ["wetread cuda float32", "wetread cuda float16", "wetread tensorrt float32"]
    assert [task.arithmetic for task in found.values()] == ["", "float16", ""]
    assert found["wetread cuda float16"].package == str(package.path)


def test_a_reference_that_is_not_float32(tmp_path, ball_package, monkeypatch):
    package = Package.open(ball_package)
    monkeypatch.setattr(Package, "precision", "int8")
    with pytest.raises(PackageError, match="expected float32"):
        find_original(package, BenchOptions(reference=ball_package), tmp_path)
    assert find_original(package, QUICK, tmp_path) is None
    _, absent = plan_rows(package, None, QUICK, WINDOW)
    assert sum("--reference" in row.problem for row in absent) == 5


def test_references_are_files_packages_or_models(tmp_path, ball_package):
    package = Package.open(ball_package)
    file = package.model_path(0)
    for reference in (None, ball_package, ball_package.parent):
        found = find_original(package, BenchOptions(reference=reference), tmp_path)
        assert found is not None and found.networks == (str(file),) and found.package == str(package.path)
    found = find_original(package, BenchOptions(reference=file), tmp_path)
    assert found is not None and found.networks == (str(file),) and not found.package


@pytest.mark.peer
def test_command_line(tmp_path, ball_package, study):
    """The whole command with the PyTorch rows, then against its own baseline, then a planted regression."""
    from wetread.cli.app import app

    arguments = [
        "bench",
        str(ball_package),
        "--case",
        str(study),
        "-o",
        str(tmp_path / "out"),
        "--windows",
        "2",
    ]
    arguments += ["--turns", "2", "--threads", "1"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "out" / "bench.json").read_text())
    rows = {f"{row['engine']} {row['precision']}": row for row in data["rows"]}
    assert (
        "problem" not in rows["PyTorch eager float32"]
        and "problem" not in rows["PyTorch TorchScript float32"]
    )
    assert data["package"]["hash"] == Package.open(ball_package).hash
    for row in data["rows"]:
        row["size_mib"] = -1000.0 if "size_mib" in row else None
        row["latency_ms_p50"] = None
    (tmp_path / "before.json").write_text(json.dumps(data))
    from wetread.errors import RegressionError

    with pytest.raises(RegressionError, match="size_mib"):
        CliRunner().invoke(
            app, [*arguments, "--baseline", str(tmp_path / "before.json")], catch_exceptions=False
        )


def test_nothing_is_given_to_a_package_that_is_none(tmp_path):
    with pytest.raises(PackageError):
        bench_package(tmp_path, QUICK)


@pytest.fixture(scope="module")
def int8_package(tmp_path_factory, case) -> tuple[Package, Path]:
    """A small U-Net quantised on the case's own windows, packed without a gate; and its float32 original."""
    from wetread.graph import Graph
    from wetread.precision import CalibrationWindow, observe, quantise

    folder = tmp_path_factory.mktemp("int8")
    original = networks.save(networks.unet((1, 1)), folder / "original.onnx")
    graph = Graph.load(original)
    windows = [CalibrationWindow("balls", array) for array in case.windows(2)]
    quantised, _ = quantise(graph, observe(graph, windows), calibrator="minmax")
    return pack(quantised.save(folder / "int8.onnx"), case.recipe, folder / "models"), original


def test_an_int8_package_beside_its_original(int8_package, case, tmp_path):
    package, original = int8_package
    options = replace(QUICK, reference=original, allow_failed_gate=True)
    tasks, _ = plan_rows(package, find_original(package, options, tmp_path), options, WINDOW)
    wanted = [t for t in tasks if t.key in ("OpenVINO float32", "wetread int8")]
    rows = {row.key: row for row in run_rows(wanted, case, case.windows(2), options).rows}
    int8 = rows["wetread int8"]
    assert not int8.problem, int8.problem
    assert int8.layers["int8"] > 3
    assert 1e-4 < int8.figures["output_difference"] < 0.3  # rounded to eight bits, and the same network
    assert int8.figures["size_mib"] < 0.6 * rows["OpenVINO float32"].figures["size_mib"]


def test_a_package_without_a_passed_gate_is_not_timed(int8_package, case, tmp_path):
    package, original = int8_package
    options = replace(QUICK, reference=original)
    tasks, _ = plan_rows(package, find_original(package, options, tmp_path), options, WINDOW)
    (task_,) = [t for t in tasks if t.key == "wetread int8"]
    with pytest.raises(RowFailedError, match="no gate has been run"):
        Worker(task_, tmp_path / "w", case.windows(1))
