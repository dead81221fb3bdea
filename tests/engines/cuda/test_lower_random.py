"""Random networks of layers, norms, sums, concatenations and resizes: lowering must not change what they compute."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.engines.cuda.lowering import error, inputs_of, outputs_of
from tests.networks import Builder
from wetread.engines.cuda.lower import fuse_norms, lower
from wetread.graph import Graph
from wetread.precision import quantise, quantised_tensors

pytestmark = pytest.mark.peer

WINDOW = (4, 4, 8)
SEEDS = range(int(os.environ.get("WETREAD_TEST_SEEDS", "12")))


class Network:
    """A random network: tensors that may be read, each with its channels and how often it was halved."""

    def __init__(self, seed: int) -> None:
        self.b, self.rng = Builder(seed), np.random.default_rng(seed)
        self.made: list[tuple[str, int, int]] = [("image", int(self.rng.choice([1, 2, 16])), 0)]
        self.first = self.made[0][1]

    def pick(self, test: object = None) -> tuple[str, int, int] | None:
        """A tensor, the newest three times as likely as all others."""
        fits = [each for each in self.made if test is None or test(each)]  # type: ignore[operator]
        if not fits:
            return None
        return fits[-1] if self.rng.random() < 0.7 else fits[int(self.rng.integers(len(fits)))]

    def grow(self) -> None:
        """Adds one layer."""
        kinds = (
            "conv",
            "conv",
            "norm",
            "group",
            "act",
            "add",
            "concat",
            "down",
            "up",
            "resize",
            "pool",
            "point",
        )
        getattr(self, str(self.rng.choice(kinds)))()

    def put(self, x: str, channels: int, level: int) -> None:
        self.made.append((x, channels, level))

    def conv(self, kernel: int = 3, stride: int = 1) -> None:
        x, c, level = self.pick() or self.made[0]
        co = int(self.rng.choice([8, 16, 26, 32]))
        self.put(self.b.conv(x, (c, co), kernel, stride), co, level + (stride == 2))

    def point(self) -> None:
        self.conv(kernel=1)

    def down(self) -> None:
        if self.made[-1][2] == 0:
            x, c, level = self.made[-1]
            self.put(self.b.conv(x, (c, 16), 3, 2), 16, level + 1)

    def up(self) -> None:
        found = self.pick(lambda each: each[2] == 1)
        if found:
            co = int(self.rng.choice([8, 16]))
            self.put(self.b.up(found[0], (found[1], co)), co, 0)

    def resize(self) -> None:
        found = self.pick(lambda each: each[2] == 1)
        if found:
            scales = self.b.constant(np.array([1, 1, 2, 2, 2], np.float32), f"scales{len(self.made)}")
            mode = str(self.rng.choice(["linear", "nearest"]))
            x = self.b.add(
                "Resize", [found[0], "", scales], mode=mode, coordinate_transformation_mode="half_pixel"
            )
            self.put(x, found[1], 0)

    def pool(self) -> None:
        found = self.pick(lambda each: each[2] == 0)
        if found:
            kind = str(self.rng.choice(["MaxPool", "AveragePool"]))
            self.put(self.b.add(kind, [found[0]], kernel_shape=[2] * 3, strides=[2] * 3), found[1], 1)

    def norm(self) -> None:
        x, c, level = self.pick() or self.made[0]
        self.put(self.b.norm(x, c), c, level)

    def group(self) -> None:
        found = self.pick(lambda each: each[1] % 8 == 0)
        if found:
            x, c, level = found
            scale = self.b.constant(
                (1 + 0.1 * self.rng.standard_normal(c)).astype(np.float32), f"{x}.s{len(self.made)}"
            )
            bias = self.b.constant(
                (0.1 * self.rng.standard_normal(c)).astype(np.float32), f"{x}.b{len(self.made)}"
            )
            self.put(self.b.add("GroupNormalization", [x, scale, bias], num_groups=8), c, level)

    def act(self) -> None:
        x, c, level = self.pick() or self.made[0]
        kind = str(self.rng.choice(["Relu", "LeakyRelu", "Sigmoid", "Elu"]))
        self.put(self.b.add(kind, [x]), c, level)

    def add(self) -> None:
        x, c, level = self.pick() or self.made[0]
        other = self.pick(lambda each: each[1:] == (c, level)) or self.made[0]
        self.put(self.b.add("Add", [x, other[0]]), c, level)

    def concat(self) -> None:
        x, c, level = self.pick() or self.made[0]
        other = self.pick(lambda each: each[2] == level) or self.made[0]
        if c + other[1] <= 64:
            self.put(self.b.add("Concat", [x, other[0]], axis=1), c + other[1], level)

    def graph(self) -> Graph:
        """The newest tensor through a head, and sometimes an inner one, as outputs."""
        x, c, level = self.made[-1]
        shape = (None, 2, *(size >> level for size in WINDOW))
        outputs = {"logits": (self.b.conv(x, (c, 2), 1), shape)}
        inner = self.made[int(self.rng.integers(len(self.made)))]
        if inner[0] != "image" and self.rng.random() < 0.3:
            outputs["inner"] = (inner[0], (None, inner[1], *(size >> inner[2] for size in WINDOW)))
        return Graph(self.b.model({"image": (None, self.first, *WINDOW)}, outputs, 21))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # norms on load and small convolutions both occur in windows of this size
    monkeypatch.setattr(fuse_norms, "SMALL", 32)
    monkeypatch.setattr(fuse_norms, "ON_LOAD", 64)
    network = Network(seed)
    for _ in range(16):
        network.grow()
    graph = network.graph()
    inputs = inputs_of(graph, WINDOW, 2, seed)
    expected = graph.fixed(WINDOW, 2).evaluate(inputs)
    # sixteen layers: of float32 with norms that divide by small deviations, and of float16
    for precision, tolerance in (("float32", 1e-4), ("float16", 0.05)):
        found = outputs_of(lower(graph, WINDOW, 2, precision), inputs)
        for name, values in found.items():
            assert error(values, expected[name]) < tolerance, f"{precision}: {name}"


@dataclass
class Seen:
    """What calibration needs to know of a tensor."""

    absmax: float
    histogram: None = None


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("seed", list(SEEDS)[::3])
def test_a_random_quantised_network(seed: int, unsigned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_norms, "SMALL", 32)
    monkeypatch.setattr(fuse_norms, "ON_LOAD", 64)
    network = Network(seed)
    for _ in range(16):
        network.grow()
    graph = network.graph()
    inputs = inputs_of(graph, WINDOW, 2, seed)
    names = quantised_tensors(graph)
    seen = inputs | graph.fixed(WINDOW, 2).evaluate(
        inputs, keep=[name for name in names if name not in inputs]
    )
    ranges: Any = {name: Seen(float(np.abs(seen[name]).max())) for name in names}
    quantised, _ = quantise(graph, ranges, calibrator="minmax", unsigned=unsigned)
    expected = quantised.fixed(WINDOW, 2).evaluate(inputs)
    found = outputs_of(lower(quantised, WINDOW, 2, "int8"), inputs)
    # what rounding itself costs such a network is 1 to 4 %, and other roundings fall differently
    for name, values in found.items():
        assert error(values, expected[name]) < 0.1, name
