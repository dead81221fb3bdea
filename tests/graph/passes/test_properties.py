"""Random small networks: the passes keep what they compute."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import networks
from tests.graph.passes.test_batch_norm import norm
from tests.graph.passes.trial import inputs_of
from wetread.graph import Graph, verify
from wetread.graph.passes import optimise

CHANNELS = 4
STEPS = (
    "conv", "up", "bn", "in", "relu", "leaky", "prelu", "add", "mul", "sub", "div", "identity", "dropout", "pad",
    "skip", "twice", "swish", "mish", "constant", "gather", "max",
)  # fmt: skip


class Growing(networks.Builder):
    """Adds one step after another; values that were seen can be joined again where shapes agree."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.seen: list[tuple[str, int]] = [("image", 0)]

    def vector(self, op: str) -> str:
        array = self.rng.uniform(0.5, 1.5, (CHANNELS, 1, 1, 1)).astype(np.float32)
        return self.constant(array, f"v{len(self.weights)}_{op}")

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32), f"n{len(self.weights)}")

    def step(self, kind: str) -> None:
        x, level = self.seen[-1]
        if kind in ("add", "mul", "sub", "div"):
            pair = [x, self.vector(kind)]
            y = self.add(
                kind.capitalize(), pair if kind in ("sub", "div") or self.rng.random() < 0.5 else pair[::-1]
            )
        elif kind == "conv":
            kernel, groups = int(self.rng.choice([1, 3])), int(self.rng.choice([1, 2]))
            y = self.conv(x, (CHANNELS, CHANNELS), kernel=kernel, groups=groups)
        elif kind == "up":
            y = self.up(x, (CHANNELS, CHANNELS)) if level < 1 else self.add("Relu", [x])
            level = 1
        elif kind == "skip":
            same = [v for v, at in self.seen if at == level]
            y = self.add("Add", [x, str(self.rng.choice(same))])
        elif kind == "twice":
            y = self.add("Add", [self.add("Relu", [x]), self.add("Relu", [x])])
        elif kind == "pad":
            pads = self.constant(np.array([0, 0, 1, 1, 0, 0, 0, 1, 1, 0], np.int64), f"p{len(self.weights)}")
            name = self.name("w")
            w = self.constant(
                self.rng.standard_normal((CHANNELS, CHANNELS, 3, 3, 1)).astype(np.float32), name
            )
            y = self.add("Conv", [self.add("Pad", [x, pads]), w], kernel_shape=[3, 3, 1])
        else:
            y = self._unary(kind, x)
        self.seen.append((y, level))

    def _unary(self, kind: str, x: str) -> str:
        if kind == "bn":
            return norm(self, x, CHANNELS)
        if kind == "in":
            return self.norm(x, CHANNELS)
        if kind == "prelu":
            return self.add("PRelu", [x, self.number(0.2)])
        if kind == "swish":
            return self.add("Mul", [x, self.add("Sigmoid", [x])])
        if kind == "mish":
            return self.add("Mul", [x, self.add("Tanh", [self.add("Softplus", [x])])])
        if kind == "max":
            return self.add("Max", [self.add("Mul", [x, self.number(0.3)]), x])
        if kind == "constant":
            return self.add("Mul", [x, self.add("Exp", [self.add("Neg", [self.number(0.5)])])])
        if kind == "gather":
            order = self.constant(np.array([2, 0, 3, 1], np.int64), f"o{len(self.weights)}")
            return self.add("Gather", [x, order], axis=1)
        op = {"leaky": "LeakyRelu", "relu": "Relu", "identity": "Identity", "dropout": "Dropout"}[kind]
        return self.add(op, [x])


def network(seed: int, steps: list[str]) -> onnx.ModelProto:
    b = Growing(seed)
    for step in steps:
        b.step(step)
    free = (None, CHANNELS, *networks.FREE)
    return b.model({"image": free}, {"out": (b.seen[-1][0], free)})


@given(st.integers(0, 10**6), st.lists(st.sampled_from(STEPS), min_size=1, max_size=10))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_passes_keep_what_a_network_computes(seed: int, steps: list[str]) -> None:
    before = Graph(network(seed, steps))
    after, report = optimise(before, window=(5, 6, 4))
    verify(after)
    assert len(after.nodes) <= len(before.nodes)
    assert report.error is not None
    assert report.error < 1e-5
    x = inputs_of(before, 5)
    expected, found = before.evaluate(x)["out"], after.evaluate(x)["out"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    again, second = optimise(after, window=(5, 6, 4))
    assert sum(p.applied for p in second.passes) == 0
    assert len(again.nodes) == len(after.nodes)
