"""Networks of the field as PyTorch exports them, by its new exporter and by TorchScript."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from wetread.graph import Graph, verify
from wetread.graph.passes import GraphReport, optimise

pytestmark = pytest.mark.peer
EXAMPLE = Path(__file__).parents[3] / "examples" / "mr_stroke"


def meshnet() -> Any:
    sys.path.insert(0, str(EXAMPLE))
    try:
        import meshnet as module
    finally:
        sys.path.remove(str(EXAMPLE))
    import torch

    network = module.MeshNet()
    for block in list(network.network)[:-1]:  # the published network has dropout between its blocks
        block.bn = torch.nn.Sequential(block.bn, torch.nn.Dropout3d(0.1))
    return network


def supervised(n: Any) -> Any:
    """DynUNet that returns a further head after its own output, as training with deep supervision does."""
    import torch

    class Supervised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            size = ((3, 3, 3, 3), (1, 2, 2, 2), (2, 2, 2))
            self.inner = n.DynUNet(3, 1, 2, *size, filters=(8, 16, 16, 32))
            self.head = torch.nn.Conv3d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.inner(x), self.head(self.inner.input_block(x))

    return Supervised()


def nets() -> dict[str, tuple[Callable[[], Any], int]]:
    from monai.networks import nets as n

    return {
        "meshnet": (meshnet, 24),
        "unet": (lambda: n.UNet(3, 1, 2, (8, 16, 32), (2, 2), num_res_units=1, norm="batch", dropout=0.1), 16),
        "segresnet": (lambda: n.SegResNet(3, 8, 1, 2, dropout_prob=0.1), 16),
        "dynunet": (lambda: supervised(n), 16),
        "basic_unet": (
            lambda: n.BasicUNet(3, 1, 2, (8, 8, 16, 16, 32, 8), act="mish", norm=("group", {"num_groups": 4})),
            16,
        ),
        "resnet": (lambda: n.resnet10(spatial_dims=3, n_input_channels=1, num_classes=2, widen_factor=0.25), 32),
        "unetr": (lambda: n.UNETR(1, 2, (32, 32, 32), feature_size=4, hidden_size=48, mlp_dim=96, num_heads=4), 32),
        "swin_unetr": (lambda: n.SwinUNETR(1, 2, feature_size=12), 64),
    }  # fmt: skip


@cache
def network(name: str) -> tuple[Any, Any]:
    """An untrained network whose norms have statistics and weights of their own, and an input for it."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    make, size = nets()[name]
    made = make()
    for module in made.modules():
        if isinstance(module, torch.nn.modules.batchnorm._NormBase) and module.weight is not None:
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
            if module.running_mean is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return made.eval(), torch.rand(1, 1, size, size, size)


def export(name: str, kind: str) -> Graph:
    import torch

    made, x = network(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "dynamo":
            from wetread.build.importers.torch_graph import program_graph

            with torch.no_grad():
                return program_graph(torch.export.export(made, (x,)), name)
        content = io.BytesIO()
        torch.onnx.export(
            made, (x,), content, dynamo=False, opset_version=17, do_constant_folding=False,
            input_names=["image"], output_names=["logits"], training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
    return Graph.from_bytes(content.getvalue(), name)


def compare(before: Graph, after: Graph, name: str) -> None:
    """ONNX Runtime on both, standard operators only: 1e-4 of the largest magnitude, float32 in another order."""
    x = {before.inputs[0].name: network(name)[1].numpy()}
    found = []
    for graph in (before, after.inlined()):
        verify(graph)
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        session = onnxruntime.InferenceSession(graph.to_bytes(), options, ["CPUExecutionProvider"])
        found.append(session.run([after.outputs[0].name], x)[0])
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-4 * np.abs(found[0]).max())


def run(name: str, kind: str) -> tuple[Graph, GraphReport]:
    before = export(name, kind)
    after, report = optimise(before, outputs=[before.outputs[0].name])
    assert report.error is not None
    assert report.error < 1e-5
    compare(before, after, name)
    return after, report


@pytest.mark.parametrize("kind", ["dynamo", "torchscript"])
def test_meshnet(kind: str) -> None:
    """Nine BatchNorms folded, dropouts gone, the output unchanged to 1e-5 relative (and ONNX Runtime agrees)."""
    before = export("meshnet", kind)
    assert before.operators["BatchNormalization"] == 9
    after, report = optimise(before)
    assert report["batch_norm"].applied == 9
    assert after.operators == {"Conv": 10, "Relu": 9}
    assert report.error is not None
    assert report.error < 1e-5
    compare(before, after, "meshnet")


@pytest.mark.parametrize("kind", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ["unet", "segresnet", "dynunet", "basic_unet", "resnet", "unetr"])
def test_networks(name: str, kind: str) -> None:
    after, report = run(name, kind)
    left = set(after.operators)
    assert not left & {
        "BatchNormalization",
        "Dropout",
        "Identity",
        "Constant",
        "Erf",
        "Softplus",
        "PRelu",
        "Softmax",
    }
    assert report.nodes_after < report.nodes_before
    if name == "dynunet":
        assert len(after.outputs) == 1
        assert [site.reason for site in report["outputs"].sites]
    expected = {
        "segresnet": {"GroupNormalization": 20, "InstanceNormalization": 5},
        "basic_unet": {"GroupNormalization": 18, "Mish": 18},
        "unetr": {"Attention": 12, "Gelu": 12, "LayerNormalization": 25},
    }.get(name, {})
    assert {op: after.operators[op] for op in expected} == expected


@pytest.mark.timeout(900)  # a minute of computing: 11,679 nodes, and windows of 343 tokens in float64, twice
def test_swin_unetr() -> None:
    """Eight blocks, three of them shifted (the last stage is one window): each attention is found."""
    after, report = run("swin_unetr", "torchscript")
    assert after.operators["WindowAttention"] == 5
    assert after.operators["ShiftedWindowAttention"] == 3
    assert after.operators["Roll"] == 18
    assert after.operators["WindowPartition"] == after.operators["WindowReverse"] == 8
    assert after.operators["Gelu"] == 8
    assert not {"ScatterND", "Shape", "Softmax", "Erf"} & set(after.operators)
    assert report.nodes_before > 10000
    assert report.nodes_after < 500
