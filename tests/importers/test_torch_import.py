"""Networks of PyTorch become graphs that give what PyTorch gives."""

import json
import zipfile

import numpy as np
import pytest

from wetread.build.importers import ImportOptions, import_model
from wetread.build.importers.torch_graph import check_agreement, module_graph
from wetread.build.importers.torch_program import inspect_program
from wetread.engines import make_engine
from wetread.errors import GraphError
from wetread.graph import verify
from wetread.graph.evaluate import evaluate

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore"),  # torch's and MONAI's own
]
torch = pytest.importorskip("torch")
nets = pytest.importorskip("monai.networks.nets")

UNET = {
    "spatial_dims": 3, "in_channels": 2, "out_channels": 3, "channels": (4, 8), "strides": (2,),
    "num_res_units": 1, "norm": "batch",
}  # fmt: skip


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    network = nets.UNet(**UNET)
    network(torch.randn(2, 2, 16, 16, 16))  # statistics that are not 0 and 1
    return network.eval()


def eager(network, image):
    with torch.no_grad():
        return network(torch.from_numpy(image)).numpy()


def save_program(path, network, shape=(2, 2, 16, 16, 16)):
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.zeros(shape),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory, unet):
    return save_program(tmp_path_factory.mktemp("program") / "unet.pt2", unet)


def test_an_exported_program_agrees_in_float64(program, unet):
    """The float64 evaluator against PyTorch in float32: 1e-4 of the largest output is far above rounding."""
    graph = import_model(program).networks[0].graph
    verify(graph)
    image = np.random.default_rng(0).normal(size=(1, 2, 16, 16, 16)).astype(np.float32)
    found = evaluate(graph, {graph.inputs[0].name: image})[graph.outputs[0].name]
    expected = eager(unet, image)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert graph.inputs[0].shape == (None, 2, 16, 16, 16)
    assert graph.operators["BatchNormalization"] == 3, "the exporter must not fold: the passes do, and tell"


def test_torchscript_agrees(tmp_path, unet):
    path = tmp_path / "unet.pt"
    torch.jit.trace(unet, torch.zeros(1, 2, 16, 16, 16)).save(path)
    graph = import_model(path, ImportOptions(window=(16, 24, 16))).networks[0].graph
    verify(graph)
    assert graph.operators["BatchNormalization"] == 3
    image = np.random.default_rng(1).normal(size=(1, 2, 16, 24, 16)).astype(np.float32)
    found = evaluate(graph, {graph.inputs[0].name: image})[graph.outputs[0].name]
    assert np.abs(found - eager(unet, image)).max() <= 1e-4 * np.abs(found).max()
    with pytest.raises(GraphError, match="does not say the shape of its input"):
        import_model(path)


def test_a_residual_network_without_biases(tmp_path):
    """`conv3d` without bias: onnxscript 0.7 exports a bias of two axes, which must be gone."""
    torch.manual_seed(1)
    network = nets.resnet10(spatial_dims=3, n_input_channels=1, num_classes=3).eval()
    path = save_program(tmp_path / "resnet.pt2", network, (2, 1, 32, 32, 32))
    graph = import_model(path).networks[0].graph
    verify(graph)
    inputs = {node.input[1]: len(node.input) for node in graph.nodes if node.op_type == "Conv"}
    assert inputs["conv1.weight"] == inputs["layer1.0.conv1.weight"] == 2
    assert inputs["layer2.0.downsample.0.weight"] == 3, "this one has a bias"
    image = np.random.default_rng(2).normal(size=(2, 1, 32, 32, 32)).astype(np.float32)
    engine = make_engine(graph, "openvino")
    found = np.zeros((2, 3), np.float32)
    with engine.context((32, 32, 32), 2) as context:
        context.submit((image,), (found,)).wait()
    engine.close()
    expected = eager(network, image)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_free_spatial_axes(unet):
    graph, notices = module_graph(unet, 2, (16, 16, 16), ImportOptions(dynamic=True), "unet")
    assert graph.inputs[0].shape == (None, 2, None, None, None)
    assert not notices
    assert graph.output_shapes((24, 32, 16))[graph.outputs[0].name][2:] == (24, 32, 16)


def test_a_graph_that_differs_is_refused(unet):
    graph, _ = module_graph(unet, 2, (16, 16, 16), ImportOptions(), "unet")
    with pytest.raises(GraphError, match="differs from PyTorch by"):
        check_agreement(lambda image: eager(unet, image) * np.float32(1.001), graph, 2, (16, 16, 16))


class Fixed(torch.nn.Module):
    """Counts windows in Python: its batch axis cannot be free."""

    def forward(self, x):
        return torch.cat([x[i : i + 1] * (i + 1.0) for i in range(int(x.shape[0]))])


def test_a_batch_axis_that_cannot_be_free_is_said():
    graph, notices = module_graph(Fixed(), 1, (4, 4, 4), ImportOptions(), "fixed")
    assert graph.inputs[0].shape[0] == 1
    assert [notice.code for notice in notices] == ["BATCH_FIXED"]


def test_a_pickled_network_with_trust(tmp_path, unet):
    path = tmp_path / "whole.pth"
    torch.save(unet, path)
    with pytest.raises(GraphError, match=r"monai\.networks\.nets\.unet\.UNet"):
        import_model(path, ImportOptions(window=(16, 16, 16)))
    imported = import_model(path, ImportOptions(window=(16, 16, 16), trust=True))
    assert imported.networks[0].graph.outputs[0].shape == (None, 3, 16, 16, 16)
    torch.save(unet.state_dict(), path)
    with pytest.raises(GraphError, match="weights without a network"):
        import_model(path)


# ---- exported programs that would execute something --------------------------------------------------------
def changed(program, path, change):
    """A copy with members changed: name without topmost folder and content to content, or None to leave out."""
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(path, "w") as target:
        for item in source.infolist():
            target.writestr(item.filename, change(item.filename.split("/", 1)[1], source.read(item)))
    return path


class Call:
    def __reduce__(self):
        return print, ("executed",)


def in_model(edit):
    def change(name, content):
        if name != "models/model.json":
            return content
        data = json.loads(content)
        edit(data)
        return json.dumps(data).encode()

    return change


def with_operator(data):
    node = data["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.hub.load"


def with_expression(data):
    text = json.dumps(data).replace("Symbol('s", "__import__('os').getcwd() or Symbol('s", 1)
    data.clear()
    data.update(json.loads(text))


def pickled_sample(name, content):
    if name != "data/sample_inputs/model.pt":
        return content
    import io

    buffer = io.BytesIO()
    torch.save((Call(),), buffer)
    return buffer.getvalue()


def pickled_weight(name, content):
    if not name.endswith("model_weights_config.json"):
        return content
    data = json.loads(content)
    next(iter(data["config"].values()))["use_pickle"] = True
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (in_model(with_operator), r"torch\.hub\.load"),
        (in_model(with_expression), r"__import__"),
        (pickled_sample, r"a pickle of (builtins|__builtin__)\.print"),
        (pickled_weight, "is pickled"),
    ],
)
def test_programs_that_would_execute_more_need_trust(tmp_path, program, capsys, change, says):
    path = changed(program, tmp_path / "changed.pt2", change)
    with pytest.raises(GraphError, match=says) as caught:
        import_model(path)
    assert caught.value.code == "NEEDS_TRUST"
    assert "executed" not in capsys.readouterr().out
    assert inspect_program(program) == ()


def test_a_truncated_program_is_named(tmp_path, program):
    path = tmp_path / "cut.pt2"
    path.write_bytes(program.read_bytes()[:-2000])
    with pytest.raises(GraphError, match="whole") as caught:
        import_model(path)
    assert str(path) in str(caught.value)
