"""Ranges are those of the tensors, whatever the order, and memory does not grow with the cases."""

import tracemalloc
from importlib import import_module

import numpy as np
import pytest

from tests.networks import Builder, unet
from wetread.errors import GraphError, NotFiniteError
from wetread.graph import Graph
from wetread.package import TensorEntry
from wetread.precision import observe as package_observe
from wetread.precision import quantised_tensors
from wetread.precision.observe import groups, observe
from wetread.precision.ranges import Histogram, TensorRange
from wetread.precision.windows import CalibrationWindow

MODULE = import_module("wetread.precision.observe")  # the package's name `observe` is the function


def windows(count=3, shape=(1, 16, 16, 16), seed=0):
    rng = np.random.default_rng(seed)
    return [
        CalibrationWindow(f"case-{i}", (i + 1) * rng.standard_normal(shape).astype(np.float32))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def network():
    return Graph(unet())


@pytest.fixture(scope="module")
def ranges(network):
    return observe(network, windows(), threads=1)


def test_ranges_are_those_of_the_float64_network(network, ranges):
    """Tolerance: float32 convolutions over up to 864 terms, and norms of 16³ voxels."""
    names = [name for name in ranges if name not in ("image", "logits")]
    found = [network.evaluate({"image": w.array[None]}, keep=names) for w in windows()]
    for name in names:
        exact = np.concatenate([f[name] for f in found])
        seen = ranges[name]
        spread = np.abs(exact).max()
        assert seen.count == exact.size
        assert seen.minimum == pytest.approx(exact.min(), abs=1e-4 * spread)
        assert seen.maximum == pytest.approx(exact.max(), abs=1e-4 * spread)
        np.testing.assert_allclose(seen.channel_absmax, np.abs(exact).max((0, 2, 3, 4)), rtol=1e-3)
        np.testing.assert_allclose(seen.channel_mean, exact.mean((0, 2, 3, 4)), atol=1e-4 * spread)
        assert seen.mean_square == pytest.approx((exact**2).mean(), rel=1e-4)
        squares = (exact**2).sum((2, 3, 4)).max()
        assert seen.square_sum == pytest.approx(squares, rel=1e-4)
        assert seen.summands == exact[0, 0].size


def test_every_float_tensor_and_counted_magnitudes(network, ranges):
    assert set(ranges) >= {name for node in network.nodes for name in node.output} | {"image"}
    assert (ranges.windows, ranges.cases) == (3, ("case-0", "case-1", "case-2"))
    for name in quantised_tensors(network):
        histogram = ranges[name].histogram
        assert histogram.counts.sum() + histogram.zeros == ranges[name].count
    assert ranges["conv_0"].histogram is None
    assert package_observe is observe


def test_in_groups_of_one_the_same(network, ranges, monkeypatch):
    monkeypatch.setattr(groups, "__defaults__", (1,))
    monkeypatch.setattr(MODULE, "CHUNK_BYTES", 1)
    again = observe(network, windows(), tensors=["leakyrelu_2", "leakyrelu_8"], threads=1)
    for name in again:
        assert again[name].absmax == pytest.approx(ranges[name].absmax, rel=1e-6)
        assert again[name].count == ranges[name].count


def test_windows_of_several_shapes(network):
    mixed = [*windows(1), *windows(1, (1, 8, 16, 24), seed=1)]
    found = observe(network, mixed, threads=1)
    assert found["image"].count == 16**3 + 8 * 16 * 24


def test_tensors_without_a_batch_axis_and_matrix_products():
    b = Builder()
    tokens = b.add("Reshape", ["image", b.constant(np.array([64, 4], np.int64), "tokens")])
    weight = b.constant(b.rng.standard_normal((4, 6)).astype(np.float32), "weight")
    product = b.add("MatMul", [tokens, weight])
    out = b.add("Reshape", [product, b.constant(np.array([1, 6, 4, 4, 4], np.int64), "back")])
    graph = Graph(b.model({"image": (1, 4, 4, 4, 4)}, {"out": (out, (1, 6, 4, 4, 4))}))
    window = windows(1, (4, 4, 4, 4))[0]
    found = observe(graph, [window], threads=1)
    table = window.array.reshape(64, 4)
    np.testing.assert_allclose(found[tokens].channel_absmax, np.abs(table).max(0), rtol=1e-6)
    assert found[tokens].square_sum == pytest.approx((table**2).sum(1).max(), rel=1e-5)
    assert len(found[product].channel_absmax) == 6


def test_nan_names_the_case(network):
    """Planted fault: one corrupted window among good ones."""
    bad = windows(3)
    bad[1].array[0, 3, 3, 3] = np.nan
    with pytest.raises(NotFiniteError, match="1 of 4096") as caught:
        observe(network, bad, threads=1)
    assert caught.value.where == "case-1"


def test_overflow_inside_names_case_and_tensor():
    b = Builder()
    out = b.add("Log", [b.add("Relu", ["image"])])
    graph = Graph(b.model({"image": (1, 1, None, None, None)}, {"out": (out, (1, 1, None, None, None))}))
    with pytest.raises(NotFiniteError, match=r"out/flat") as caught:
        observe(graph, windows(1), threads=1)
    assert caught.value.where == "case-0"


def test_nothing_to_observe(network):
    with pytest.raises(GraphError, match="no calibration window"):
        observe(network, [])
    with pytest.raises(GraphError, match="'nowhere'"):
        observe(network, windows(1), tensors=["nowhere"])


def test_groups_hold_what_fits():
    entries = {
        n: TensorEntry(name=n, shape=(1, s), dtype="float32")
        for n, s in zip("abcd", (10, 10, 50, 5), strict=True)
    }
    assert list(groups(entries, 240)) == [["a", "b", "c", "d"]]  # 300 bytes: three times the largest is 600
    entries = {name: entry for name, entry in entries.items() if name != "c"}
    assert list(groups(entries, 1)) == [["a", "b", "d"]]
    assert list(groups(dict.fromkeys("abcdefg", entries["a"]), 1)) == [
        ["a", "b", "c"],
        ["d", "e", "f"],
        ["g"],
    ]
    assert list(groups(dict.fromkeys("abcdefg", entries["a"]), 5 * 40)) == [list("abcde"), list("fg")]


@pytest.mark.parametrize("seed", range(4))
def test_histogram_does_not_depend_on_the_order(seed):
    rng = np.random.default_rng(seed)
    parts = [(10.0**k * rng.standard_normal(5000)).astype(np.float32) for k in (-2, 0, 3)]
    for part in parts:
        part[:100] = 0
    orders = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        histogram = Histogram(256)
        for number in order:
            histogram.update(parts[number], float(np.abs(parts[number]).max()))
        orders.append(histogram)
    for other in orders[1:]:
        np.testing.assert_array_equal(other.counts, orders[0].counts)
        assert (other.limit, other.zeros) == (orders[0].limit, 300)
    values = np.abs(np.concatenate(parts)).astype(np.float64)
    exact, _ = np.histogram(values[values > 0], 256, (0, orders[0].limit))
    np.testing.assert_array_equal(orders[0].counts, exact)


def test_values_that_float16_loses_are_counted():
    found = TensorRange()
    values = np.array([0.0, 1e-9, -2e-8, 1e-7, 1.0, -3.0], np.float32).reshape(1, 2, 3, 1, 1)
    found.update(values)
    assert (found.zeros, found.tiny) == (1, int((values.astype(np.float16) == 0).sum()) - 1)


def test_memory_does_not_grow_with_the_number_of_windows():
    """Twenty chest CTs of 8 windows of 64 × 128 × 128 are 671 MB; what is held is one chunk and one group."""

    def peak(count):
        found = TensorRange()
        rng = np.random.default_rng(0)
        tracemalloc.start()
        for _ in range(count):
            found.update(rng.standard_normal((1, 8, 32, 32, 32), np.float32))
        _, top = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return top

    assert peak(12) < 1.1 * peak(2) + 100_000


def test_windows_are_taken_a_few_at_a_time(network, monkeypatch):
    """The stream is never run ahead of by more than a chunk."""
    monkeypatch.setattr(MODULE, "CHUNK_BYTES", 2 * 4 * 16**3)
    alive, most = [], 0

    def stream():
        nonlocal most
        for window in windows(9):
            alive.append(window)
            yield window

    seen = []
    original = TensorRange.update

    def update(self, values):
        seen.append(len(alive))
        original(self, values)

    monkeypatch.setattr(TensorRange, "update", update)
    observe(network, stream(), tensors=["image"], threads=1)
    assert seen == [2, 2, 4, 4, 6, 6, 8, 8, 9]
