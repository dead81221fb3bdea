"""Packages as Triton model repositories: what is written, and that NVIDIA's own schema reads it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import networks
from tests.conftest import ball_recipe
from tests.wheels import wheel
from wetread.build.triton import TritonOptions, export_triton, model_version
from wetread.build.triton_config import quoted
from wetread.cli.app import app
from wetread.engines import make_engine
from wetread.engines.tensorrt.plan import PlanRecord, plan_name
from wetread.errors import GateError, PackageError
from wetread.graph import Graph
from wetread.package import GateRecord, NetworkFile, Package, ShapeProfile, bytes_sha256, write_package
from wetread.recipe import Recipe


def network(model: Any, fold: int = 0) -> NetworkFile:
    graph = Graph(model)
    return NetworkFile(graph.to_bytes(), graph.precision, graph.inputs, graph.outputs, fold=fold)


def made(tmp_path: Path, *models: Any, records: list[GateRecord] | None = None) -> Package:
    recipe = Recipe.model_validate(ball_recipe(version="1.2.3", description='Läsion «a» "b"'))
    files = [network(model, fold) for fold, model in enumerate(models)]
    return write_package(tmp_path / "models", recipe, files, records=records)


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_layout(tmp_path: Path) -> None:
    package = made(tmp_path, networks.unet((1, 2), (4, 8)))
    (folder,) = export_triton(package, tmp_path / "repo")
    assert folder == tmp_path / "repo" / "balls"
    assert sorted(tree(folder)) == ["1002003/model.onnx", "config.pbtxt", "labels.txt", "recipe.json"]
    assert (folder / "labels.txt").read_text() == "ball\nchannel 1\n"
    assert (folder / "recipe.json").read_bytes() == (package.path / "recipe.json").read_bytes()
    assert [path.name for path in (tmp_path / "repo").iterdir()] == ["balls"]  # nothing hidden is left


def test_what_is_served_computes_what_the_package_does(tmp_path: Path) -> None:
    """The network keeps its numbers, and functions of our own are gone."""
    from tests.engines.contract import images, run
    from tests.engines.test_shapes import with_function

    package = made(tmp_path, with_function())
    assert Graph.load(package.model_path()).model.functions
    (folder,) = export_triton(package, tmp_path / "repo")
    served = Graph.load(folder / "1002003" / "model.onnx")
    assert not served.model.functions
    assert {node.domain for node in served.nodes} <= {"", "ai.onnx"}
    engine = make_engine(served, "openvino", threads=1)
    x = images(1, 1, (8, 8, 8))
    with engine.context((8, 8, 8)) as context:
        found = run(engine, context, x)
    expected = Graph.load(package.model_path()).evaluate({"image": x})["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    package = made(tmp_path, networks.unet((1, 2), (4, 8)))
    export_triton(package, tmp_path / "a")
    export_triton(package, tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_models_that_are_there_are_not_replaced_unasked(tmp_path: Path) -> None:
    package = made(tmp_path, networks.unet((1, 2), (4, 8)))
    (folder,) = export_triton(package, tmp_path / "repo")
    (tmp_path / "repo" / "other").mkdir()
    (folder / "mine.txt").write_text("kept")
    with pytest.raises(PackageError, match="has a model of this name"):
        export_triton(package, tmp_path / "repo")
    assert (folder / "mine.txt").exists()
    export_triton(package, tmp_path / "repo", TritonOptions(force=True))
    assert not (folder / "mine.txt").exists()
    assert sorted(path.name for path in (tmp_path / "repo").iterdir()) == ["balls", "other"]


def test_the_gate_holds_for_exports(tmp_path: Path) -> None:
    """An int8 network that was judged on OpenVINO is served by OpenVINO only."""
    passed = GateRecord(backend="openvino", precision="int8", status="passed", figures={"dice": 0.99})
    package = made(tmp_path, networks.int8_chain(), records=[passed])
    with pytest.raises(GateError, match="no gate has been run for onnxruntime in int8"):
        export_triton(package, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()
    (folder,) = export_triton(package, tmp_path / "repo", TritonOptions("openvino"))
    assert "openvino in int8: passed (dice 0.99)" in (folder / "config.pbtxt").read_text()
    export_triton(package, tmp_path / "two", TritonOptions(override_gate=True))
    assert "explicit override" in (tmp_path / "two" / "balls" / "config.pbtxt").read_text()


@pytest.mark.parametrize("options", [{"max_batch": 0}, {"instances": 0}, {"queue_delay_us": -1}])
def test_options_out_of_range(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(PackageError, match=next(iter(options))):
        export_triton(made(tmp_path, networks.threshold()), tmp_path / "repo", TritonOptions(**options))


def test_versions() -> None:
    assert [model_version(text) for text in ("0.0.0", "0.0.1", "1.2.3", "12.0.999")] == [
        1, 1, 1002003, 12000999,
    ]  # fmt: skip
    with pytest.raises(PackageError, match=r"1\.1000\.0 has no number"):
        model_version("1.1000.0")


def test_command(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    package = made(tmp_path, networks.threshold())
    arguments = ["export", str(package.path), "--to", "triton", "-o", str(tmp_path / "repo"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["models"] == ["balls"]
    for wrong in (["--to", "torchserve"], ["--backend", "python"]):
        done = CliRunner().invoke(app, [*arguments, *wrong])
        assert done.exit_code == 2


# ---- plans ----------------------------------------------------------------------------------------------
def leave_plan(package: Package, gpu: str, content: bytes = b"plan") -> Path:
    digest = bytes_sha256(Graph.load(package.model_path()).inlined().to_bytes())
    shapes = ShapeProfile(min=(16, 32, 32), opt=(16, 32, 32), max=(16, 32, 32))
    record = PlanRecord(
        tensorrt="11.4.0", gpu=gpu, compute_capability="9.0", network=digest, package=package.hash,
        shapes=shapes, plan=bytes_sha256(content),
    )  # fmt: skip
    path = package.path / "engines" / f"tensorrt-{gpu}" / plan_name(digest, shapes)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    path.with_name(path.name + ".json").write_text(record.model_dump_json())
    return path


def test_plans_are_taken_where_they_exist(tmp_path: Path) -> None:
    package = made(tmp_path, networks.threshold())
    options = TritonOptions("tensorrt")
    with pytest.raises(PackageError, match="one TensorRT plan is needed, found none"):
        export_triton(package, tmp_path / "repo", options)
    plan = leave_plan(package, "A")
    (folder,) = export_triton(package, tmp_path / "repo", options)
    assert (folder / "1002003" / "model.plan").read_bytes() == b"plan"
    assert "max_batch_size: 0" in (folder / "config.pbtxt").read_text()
    leave_plan(package, "B", b"other")
    with pytest.raises(PackageError, match=r"for A, .* for B"):
        export_triton(package, tmp_path / "two", options)
    export_triton(package, tmp_path / "two", TritonOptions("tensorrt", plans=plan.parent))
    plan.write_bytes(b"damaged")
    with pytest.raises(PackageError, match="not the one that its record speaks of"):
        export_triton(package, tmp_path / "three", TritonOptions("tensorrt", plans=plan.parent))


# ---- NVIDIA's schema ------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`model_config_pb2` of NVIDIA's client; only that module, because the client pins a protobuf of its own."""
    member = "tritonclient/grpc/model_config_pb2.py"
    folder = tmp_path_factory.mktemp("schema")
    with zipfile.ZipFile(wheel("tritonclient", ">=2.60,<3")) as archive:
        archive.extract(member, folder)
    spec = importlib.util.spec_from_file_location("model_config_pb2", folder / member)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # its code was made for another protobuf than this environment's
        pytest.skip(f"tritonclient's messages do not load here: {error}")
    return module


def read(schema: Any, folder: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


@pytest.mark.peer
def test_config_by_nvidias_schema(tmp_path: Path, schema: Any) -> None:
    package = made(tmp_path, networks.unet((1, 2), (4, 8)))
    options = TritonOptions(max_batch=6, queue_delay_us=500, instances=2)
    (folder,) = export_triton(package, tmp_path / "repo", options)
    config = read(schema, folder)
    assert (config.name, config.platform, config.max_batch_size) == (folder.name, "onnxruntime_onnx", 6)
    assert (folder / "1002003" / config.default_model_filename).is_file()
    assert (config.input[0].name, config.input[0].data_type) == ("image", schema.TYPE_FP32)
    assert list(config.input[0].dims) == [1, -1, -1, -1]
    assert list(config.output[0].dims) == [2, -1, -1, -1]
    assert config.output[0].label_filename == "labels.txt"
    assert config.instance_group[0].count == 2
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.parameters["wetread_hash"].string_value == package.hash


@pytest.mark.peer
def test_fixed_batches_and_other_backends(tmp_path: Path, schema: Any) -> None:
    package = made(tmp_path, networks.unet((1, 2), (4, 8), window=(16, 32, 32), batch=1))
    (folder,) = export_triton(package, tmp_path / "repo", TritonOptions("openvino", queue_delay_us=10))
    config = read(schema, folder)
    assert (config.backend, config.max_batch_size) == ("openvino", 0)
    assert list(config.input[0].dims) == [1, 1, 16, 32, 32]
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_CPU
    assert not config.HasField("dynamic_batching")  # Triton forms no batches of a fixed one
    leave_plan(package, "A")
    (folder,) = export_triton(package, tmp_path / "two", TritonOptions("tensorrt"))
    config = read(schema, folder)
    assert (config.platform, config.default_model_filename) == ("tensorrt_plan", "model.plan")
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU


@pytest.mark.peer
def test_folds_become_an_ensemble(tmp_path: Path, schema: Any) -> None:
    package = made(tmp_path, *(networks.unet((1, 2), (4, 8), seed=seed) for seed in range(3)))
    folders = export_triton(package, tmp_path / "repo")
    assert [f.name for f in folders] == [
        "balls_stage0_fold0",
        "balls_stage0_fold1",
        "balls_stage0_fold2",
        "balls",
    ]
    config = read(schema, folders[-1])
    assert config.platform == "ensemble"
    assert [output.name for output in config.output] == ["logits_fold0", "logits_fold1", "logits_fold2"]
    steps = config.ensemble_scheduling.step
    assert [step.model_name for step in steps] == [f.name for f in folders[:3]]
    for step, folder in zip(steps, folders, strict=False):
        member = read(schema, folder)
        assert dict(step.input_map) == {member.input[0].name: config.input[0].name}
        assert list(step.output_map) == [member.output[0].name]
        assert list(config.input[0].dims) == list(member.input[0].dims)
        assert config.max_batch_size == member.max_batch_size
    assert {value for step in steps for value in step.output_map.values()} == {o.name for o in config.output}
    assert (folders[-1] / "1002003").is_dir()


@pytest.mark.peer
@pytest.mark.parametrize(
    "text", ['a "b" \\ c', "Läsion «x» µ", "tab\tline\nend\r", "", "\x00\x7f", "%s {}: []"]
)
def test_strings_come_back_as_they_were(schema: Any, text: str) -> None:
    from google.protobuf import text_format

    assert text_format.Parse(f"name: {quoted(text)}", schema.ModelConfig()).name == text


@pytest.mark.peer
def test_the_schema_refuses_what_is_wrong(tmp_path: Path, schema: Any) -> None:
    """The check fires."""
    from google.protobuf import text_format

    (folder,) = export_triton(made(tmp_path, networks.threshold()), tmp_path / "repo")
    text = (folder / "config.pbtxt").read_text()
    for old, new in (("TYPE_FP32", "TYPE_FLOAT"), ("max_batch_size", "max_batch"), ("KIND_AUTO", "KIND_ANY")):
        with pytest.raises(text_format.ParseError):
            text_format.Parse(text.replace(old, new), schema.ModelConfig())
