"""The check after every pass fires on planted faults of every kind, and lets alone what is equal."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests import networks
from wetread.errors import GraphError
from wetread.graph import Graph
from wetread.graph.passes import DEFAULT_PASSES, Network, Pass, optimise
from wetread.graph.passes.common import CommonPass
from wetread.graph.passes.identity import IdentityPass
from wetread.graph.passes.lift import LiftPass


class Fault(Pass):
    """Whatever a test plants."""

    name = "fault"

    def __init__(self, plant) -> None:
        self.plant = plant

    def run(self, network: Network) -> None:
        self.plant(network)
        network.applied([next(network.nodes())], "planted")


def wrong_slope(network: Network) -> None:
    node = next(network.nodes("LeakyRelu"))
    node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.011)


def swapped_inputs(network: Network) -> None:
    node = next(network.nodes("Concat"))
    a, b = node.inputs
    node.replace_input_with(0, b)
    node.replace_input_with(1, a)


def wrong_weight(network: Network) -> None:
    node = next(network.nodes("Conv"))
    array = node.inputs[1].const_value.numpy().copy()
    array.flat[7] *= 1.001
    node.replace_input_with(1, network.weight(array, "wrong"))


def wrong_constant(network: Network) -> None:
    """Folds x − x to one."""
    node = next(network.nodes("Sub"))
    one = network.weight(np.ones((1, 1, 1, 1, 1), np.float32), "one")
    network.graph.initializers.pop("one")
    name = node.outputs[0].name
    ir.convenience.replace_all_uses_with(node.outputs[0], one)
    network.graph.remove(node, safe=True)
    one.name = name
    network.graph.register_initializer(one)


def dropped_node(network: Network) -> None:
    node = next(network.nodes("InstanceNormalization"))
    ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])


def wrong_shape(network: Network) -> None:
    node = next(network.nodes("Conv"))
    node.replace_input_with(1, network.weight(np.zeros((8, 3, 3, 3, 3), np.float32), "wrong"))


@pytest.mark.parametrize(
    ("plant", "place"),
    [
        (wrong_slope, "LeakyRelu 'leakyrelu_2'"),
        (swapped_inputs, "Concat 'concat_10'"),
        (wrong_weight, "Conv 'conv_0'"),
        (dropped_node, "LeakyRelu 'leakyrelu_2'"),
    ],
)
def test_faults_are_caught_and_named(plant, place: str) -> None:
    with pytest.raises(GraphError, match=rf"pass 'fault' changes.*{place}"):
        optimise(Graph(networks.unet()), passes=[Fault(plant)])


def test_a_malformed_network_is_caught() -> None:
    with pytest.raises(GraphError, match="pass 'fault' leaves a malformed network"):
        optimise(Graph(networks.unet()), passes=[Fault(wrong_shape)])


def test_a_pass_that_breaks_down_is_named() -> None:
    def crash(network: Network) -> None:
        raise KeyError("x")

    with pytest.raises(GraphError, match="pass 'fault' cannot work on this network: KeyError"):
        optimise(Graph(networks.unet()), passes=[Fault(crash)])


def test_a_wrong_constant_is_caught() -> None:
    b = networks.Builder()
    c = b.constant(np.full((1, 1, 1, 1, 1), 3, np.float32), "c")
    x = b.add("Add", ["image", b.add("Sub", [c, c])])
    model = b.model({"image": (None, 1, *networks.FREE)}, {"out": (x, (None, 1, *networks.FREE))})
    with pytest.raises(GraphError, match=r"pass 'fault' folds 'sub_0' to a wrong constant.*Sub 'sub_0'"):
        optimise(Graph(model), passes=[Fault(wrong_constant)])


def test_the_whole_network_is_checked_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from wetread.graph.passes import check

    monkeypatch.setattr(check, "check", lambda *_: None)
    with pytest.raises(GraphError, match="the passes change the output 'logits' of the whole network"):
        optimise(Graph(networks.unet()), passes=[Fault(wrong_slope)])


def doubled() -> onnx.ModelProto:
    """Two equal branches behind Identity nodes: after merging, what was independent is the same value."""
    b = networks.Builder()
    one = b.add("Relu", [b.add("Neg", [b.add("Identity", ["image"])])])
    two = b.add("Relu", [b.add("Neg", [b.add("Identity", ["image"])])])
    x = b.add("Sub", [b.add("Exp", [one]), b.add("Mul", [two, one])])
    return b.model({"image": (None, 1, *networks.FREE)}, {"out": (x, (None, 1, *networks.FREE))})


def test_merged_values_are_equal_by_structure() -> None:
    graph, report = optimise(Graph(doubled()), passes=[LiftPass(), IdentityPass(), CommonPass()])
    assert graph.operators == {"Neg": 1, "Relu": 1, "Exp": 1, "Mul": 1, "Sub": 1}
    assert report["common"].worst_error == 0
    assert report.error == 0


def test_report_as_plain_data() -> None:
    import json

    graph, report = optimise(Graph(networks.unet()))
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["nodes_before"] == len(networks.unet().graph.node)
    assert plain["nodes_after"] == len(graph.nodes)
    assert [p["name"] for p in plain["passes"]] == [p.name for p in DEFAULT_PASSES]
    with pytest.raises(KeyError):
        report["nothing"]


def test_outputs_are_cut_and_said_to_be() -> None:
    b = networks.Builder()
    x = b.conv("image", (1, 2))
    head = b.conv(x, (2, 2), kernel=1)
    free = (None, 2, *networks.FREE)
    model = b.model({"image": (None, 1, *networks.FREE)}, {"logits": (x, free), "head": (head, free)})
    graph, report = optimise(Graph(model), outputs=["logits"])
    assert [e.name for e in graph.outputs] == ["logits"]
    assert report.passes[0].sites[0].reason == "Conv served only the outputs head"
    assert (report.nodes_before, report.nodes_after) == (2, 1)


def test_the_same_network_gives_the_same_bytes() -> None:
    one, two = (optimise(Graph(networks.unet()))[0].to_bytes() for _ in range(2))
    assert one == two
