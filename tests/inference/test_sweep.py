"""The whole path, from slices to labels on the source grid."""

import numpy as np
import pytest
from scipy import ndimage

from wetread.errors import GeometryError, RecipeError
from wetread.geometry import lattice_grid, orient, resample
from wetread.inference import Runner, Sweep, run
from wetread.volume import Grid


def field(shape, seed=0, low=-1000.0, high=300.0, sigma=2.5):
    """A smooth random volume in HU."""
    x = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    x = (x - x.min()) / (x.max() - x.min())
    return np.rint(low + x * (high - low)).astype(np.int16)


def logits(x):
    """A network of one voxel's reach: probability ½ at 0.35."""
    return (x - 0.35) * 12


def read(recipe, grid, voxels, engine, modality="CT", chunks=None):
    sweep = Sweep(recipe, grid, engine.channels_out, modality)
    with Runner(sweep, engine) as runner:
        for first, last in chunks or [(0, len(voxels))]:
            sweep.add(first, voxels[first:last])
            runner.run()
    assert sweep.finished
    return sweep.result()


def same(a, b):
    return np.array_equal(a.mask, b.mask) and np.array_equal(a.probability, b.probability)


@pytest.mark.parametrize("orientation", ["SPL", "RAS", "AIL"])
@pytest.mark.parametrize("kind", ["lattice", "fitted"])
def test_a_pointwise_network_gives_back_the_resampled_image(
    make_recipe, make_grid, make_engine, orientation, kind
):
    grid = make_grid((21, 40, 36), (1.25, 0.7, 0.7))
    voxels = field(grid.shape)
    tiling = {"kind": kind, "window": [8, 12, 10], "stride": [4, 6, 6]}
    recipe = make_recipe(orientation=orientation, tiling=tiling)
    outcome = read(recipe, grid, voxels, make_engine(logits))
    prepared = resample(np.clip(voxels, -600, 400), grid, outcome.prepared) * 0.001 + 0.6
    assert outcome.prepared.axis_codes == orientation
    probability = 1 / (1 + np.exp(-logits(prepared)))
    expected = resample(probability, outcome.prepared, grid)
    sure = np.abs(expected - 0.5) > 1e-4
    assert sure.mean() > 0.99 and 0.05 < (expected > 0.5).mean() < 0.95
    assert np.array_equal(outcome.mask[sure], (expected >= 0.5)[sure])
    inside = outcome.mask > 0
    assert np.abs(outcome.probability[inside] - expected[inside]).max() < 1e-3  # float16
    assert not outcome.probability[~inside].any()


def chunks_of(n, how):
    rng = np.random.default_rng(5)
    if how == "by one":
        return [(i, i + 1) for i in range(n)]
    if how == "reversed":
        return [(i, i + 1) for i in range(n)][::-1]
    if how == "shuffled":
        return [(int(i), int(i) + 1) for i in rng.permutation(n)]
    return [(0, 7), (7, 12), (12, n)]


@pytest.mark.parametrize("how", ["by one", "reversed", "shuffled", "in slabs"])
@pytest.mark.parametrize(
    ("orientation", "place"), [("SPL", "lungs"), ("SPL", "all"), ("RAS", "body"), ("IPL", "lungs")]
)
def test_slices_in_any_order_give_the_same_bits(make_recipe, make_grid, make_engine, how, orientation, place):
    grid = make_grid((40, 40, 36), (2.5, 4, 4))
    voxels = field(grid.shape, 1)
    recipe = make_recipe(
        orientation=orientation,
        place={"kind": place, "margin_mm": 10},
        steps=[{"step": "resample", "spacing_mm": [3, 3, 3]}, {"step": "scale", "lower": -600, "upper": 400}],
    )

    def network(x):  # reaches two voxels
        return np.stack([logits(ndimage.uniform_filter(x[0], 5)), np.tanh(x[0])]).astype(np.float32)

    engine = make_engine(network, 1, 2)
    recipe = recipe.model_copy(
        update={"activation": "softmax", "labels": (recipe.labels[0].model_copy(update={"channels": (1,)}),)}
    )
    whole = read(recipe, grid, voxels, engine)
    assert 0.02 < whole.mask.mean() < 0.98
    assert place != "lungs" or whole.windows_skipped > 0
    parts = read(recipe, grid, voxels, engine, chunks=chunks_of(40, how))
    assert same(whole, parts)
    assert (whole.windows_run, whole.windows_skipped) == (parts.windows_run, parts.windows_skipped)


@pytest.mark.parametrize("seed", [0, 1])
def test_outputs_in_any_order_give_the_same_bits(make_recipe, make_grid, make_engine, seed):
    grid = make_grid((21, 40, 36))
    voxels = field(grid.shape)
    recipe = make_recipe()
    whole = read(recipe, grid, voxels, make_engine(logits))
    sweep = Sweep(recipe, grid, 1, "CT")
    sweep.add(0, voxels)
    windows = sweep.ready()
    assert len(windows) == sweep.window_total and sweep.ready() == []
    buffer = np.full((1, *sweep.window_shape), np.nan, np.float32)
    for number in np.random.default_rng(seed).permutation(len(windows)):
        sweep.fill(windows[number], buffer)
        assert np.isfinite(buffer).all()
        sweep.accept(windows[number], logits(buffer))
        buffer[...] = np.nan
    assert same(whole, sweep.result())


def test_a_lattice_starts_before_the_scan_ends_and_shows_what_it_has(make_recipe, make_grid, make_engine):
    grid = make_grid((60, 30, 30))
    voxels = field(grid.shape)
    recipe, engine = make_recipe(), make_engine(logits)
    final = read(recipe, grid, voxels, engine)
    sweep = Sweep(recipe, grid, 1, "CT")
    with Runner(sweep, engine) as runner:
        sweep.add(0, voxels[:30])
        runner.run()
        assert 0 < sweep.windows_run < sweep.window_total and not sweep.finished
        with pytest.raises(RecipeError, match="missing"):
            sweep.result()
        early = sweep.result(provisional=True)
        assert not early.complete and early.mask[:20].any() and not early.mask[30:].any()
        assert np.array_equal(early.mask[:20], final.mask[:20])
        sweep.add(30, voxels[30:])
        runner.run()
    assert same(sweep.result(), final)


@pytest.mark.parametrize("kind", ["lungs", "body"])
@pytest.mark.parametrize("tiling", ["lattice", "fitted"])
def test_skipping_changes_nothing_inside_the_place(make_recipe, make_grid, make_engine, kind, tiling):
    grid = make_grid((60, 80, 80), (3, 4, 4))
    z, y, x = np.ogrid[:60, :80, :80]
    voxels = np.full(grid.shape, -1000, np.int16)
    body = ((y - 44) / 28) ** 2 + ((x - 40) / 26) ** 2 < 1
    voxels[np.broadcast_to(body, grid.shape)] = 40
    for centre in (28, 52):
        lung = ((y - 42) / 16) ** 2 + ((x - centre) / 9) ** 2 + ((z - 34) / 18) ** 2 < 1
        voxels[lung] = -850
    voxels += np.random.default_rng(0).integers(-12, 12, grid.shape).astype(np.int16)
    window = {"kind": tiling, "window": [8, 8, 8], "stride": [4, 4, 4]}
    steps = [{"step": "resample", "spacing_mm": [4, 4, 4]}, {"step": "scale", "lower": -600, "upper": 400}]
    place = make_recipe(tiling=window, steps=steps, place={"kind": kind, "margin_mm": 8})
    everywhere = make_recipe(tiling=window, steps=steps)

    def network(x):
        return ndimage.uniform_filter(np.sin(300 * x), (0, 3, 3, 3)) * 40

    some = Sweep(place, grid, 1, "CT")
    some.add(0, voxels)
    run(some, make_engine(network))
    every = read(everywhere, grid, voxels, make_engine(network))
    some_ = some.result()
    assert some_.windows_skipped > 0 and some_.windows_run + some_.windows_skipped == every.windows_run
    inside = np.stack([some._place.inside(n) for n in range(some_.prepared.shape[0])])
    assert 0.02 < inside.mean() < 0.9
    # where all eight prepared voxels around a source voxel lie in the place, the bits are the same
    deep = resample(inside.astype(np.float32), some_.prepared, grid) >= 1 - 1e-6
    assert deep.mean() > 0.01 and every.mask[deep].any()
    assert np.array_equal(some_.mask[deep], every.mask[deep])
    assert np.array_equal(some_.probability[deep], every.probability[deep])
    nowhere = resample(inside.astype(np.float32), some_.prepared, grid) == 0
    assert every.mask[nowhere].any() and not some_.mask[nowhere].any()


@pytest.mark.parametrize("orientation", ["RAS", "SPL", "PIR"])
def test_one_whole_window_on_the_native_grid_goes_back_exactly(
    make_recipe, make_grid, make_engine, orientation
):
    grid = make_grid((7, 9, 11), (3, 0.7, 0.7))
    voxels = np.random.default_rng(0).normal(100, 30, grid.shape).astype(np.float32)
    recipe = make_recipe(
        orientation=orientation,
        steps=[{"step": "minmax"}],
        tiling={"kind": "whole", "multiple": [4, 4, 4]},
        activation="softmax",
        labels=[{"index": 3, "name": "stroke", "channels": [1]}],
    )
    seen = []

    def network(x):
        seen.append(x.copy())
        mark = x[0] + 0.3 * np.arange(x.shape[1])[:, None, None] / x.shape[1]  # knows its first axis
        return np.stack([np.full_like(mark, 0.6), mark])

    outcome = read(recipe, grid, voxels, make_engine(network, 1, 2), "MR")
    turned, _ = orient(voxels, grid, orientation)
    scaled = (turned - voxels.min()) / (voxels.max() - voxels.min())
    box = tuple(slice(0, n) for n in turned.shape)
    assert len(seen) == 1 and seen[0].shape[1:] == tuple(-(-n // 4) * 4 for n in turned.shape)
    assert np.abs(seen[0][0][box] - scaled).max() < 1e-6
    pad = np.ones(seen[0].shape[1:], bool)
    pad[box] = False
    assert not seen[0][0][pad].any()
    size = seen[0].shape[1]
    mark = seen[0][0][box] + np.float32(0.3) * np.arange(turned.shape[0])[:, None, None] / size
    expected = np.where(mark >= 0.6, 3, 0)
    sure = np.abs(mark - 0.6) > 1e-5
    assert np.array_equal(orient(outcome.mask, grid, orientation)[0][sure], expected[sure])


def test_several_classes_take_the_largest_interpolated_probability(make_recipe, make_grid, make_engine):
    grid = make_grid((20, 30, 28), (1.5, 0.8, 0.8))
    voxels = field(grid.shape, sigma=1.5)
    labels = [
        {"index": 5, "name": "five", "channels": [1]},
        {"index": 2, "name": "two", "channels": [3]},
    ]
    recipe = make_recipe(activation="softmax", labels=labels)

    def network(x):
        return np.concatenate([np.full_like(x, 1.0), 5 * x, 3 - 9 * np.abs(x - 0.3), 12 * (x - 0.3)])

    outcome = read(recipe, grid, voxels, make_engine(network, 1, 4))
    prepared = resample(np.clip(voxels, -600, 400), grid, outcome.prepared) * 0.001 + 0.6
    exp = np.exp(network(prepared[None]))
    back = np.stack([resample(p, outcome.prepared, grid) for p in exp / exp.sum(axis=0)])
    expected = np.array([0, 5, 0, 2])[back.argmax(axis=0)]
    top = np.sort(back, axis=0)
    sure = top[-1] - top[-2] > 1e-4
    assert set(np.unique(expected)) == {0, 2, 5} and sure.mean() > 0.99
    assert np.array_equal(outcome.mask[sure], expected[sure])
    for value, channel in ((5, 1), (2, 3)):
        here = (outcome.mask == value) & sure
        assert np.abs(outcome.probability[here] - back[channel][here]).max() < 1e-3


def test_sigmoid_labels_later_over_earlier(make_recipe, make_grid, make_engine):
    grid = make_grid((8, 12, 12), (1, 1, 1), (0, 0, 0))
    voxels = field(grid.shape)
    labels = [
        {"index": 1, "name": "whole", "channels": [0]},
        {"index": 4, "name": "core", "channels": [1], "threshold": 0.8},
    ]
    recipe = make_recipe(labels=labels)
    engine = make_engine(lambda x: np.concatenate([(x - 0.2) * 9, (x - 0.4) * 9]), 1, 2)
    outcome = read(recipe, grid, voxels, engine)
    x = np.clip(voxels, -600, 400) * 0.001 + 0.6
    whole, core = (1 / (1 + np.exp(-(x - c) * 9)) for c in (0.2, 0.4))
    expected = np.where(core >= 0.8, 4, np.where(whole >= 0.5, 1, 0))
    assert set(np.unique(expected)) == {0, 1, 4}
    sure = (np.abs(whole - 0.5) > 1e-4) & (np.abs(core - 0.8) > 1e-4)
    assert sure.mean() > 0.98 and np.array_equal(outcome.mask[sure], expected[sure])


@pytest.mark.parametrize("kind", ["lattice", "fitted"])
def test_channels_are_put_on_the_reference_channels_grid(make_recipe, make_grid, make_engine, kind):
    reference = make_grid((12, 24, 22), (2, 1, 1), (-11, -12, -13))
    angle = 0.2
    affine = np.array(make_grid((1, 1, 1), (1.3, 1.1, 1.2), (-18, -10, -20)).affine)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    other = Grid((26, 30, 34), turn @ affine)

    def world(grid):
        index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
        return grid.world(index) @ np.array([0.02, -0.01, 0.03])

    recipe = make_recipe(
        channels=[{"name": "other"}, {"name": "reference"}],
        reference_channel=1,
        steps=[{"step": "resample", "spacing_mm": [1, 1, 1]}],
        tiling={"kind": kind, "window": [8, 8, 8], "stride": [8, 8, 8]},
    )
    sweep = Sweep(recipe, [other, reference], 1, "MR")
    sweep.add(0, world(reference).astype(np.float32), channel=1)
    assert sweep.ready() == []
    sweep.add(13, world(other)[13:].astype(np.float32), channel=0)
    sweep.add(0, world(other)[:13].astype(np.float32), channel=0)
    a, b = sweep._intake.array
    index = np.stack(np.meshgrid(*map(np.arange, a.shape), indexing="ij"), -1)
    place = sweep._intake.grid.world(index)
    covered = np.ones(a.shape, bool)
    for grid in (other, reference):
        into = grid.index(place)
        covered &= ((into >= 0) & (into <= np.array(grid.shape) - 1)).all(-1)
    if kind == "fitted":  # twice interpolated: the reference's voxels must be covered too
        covered = ndimage.binary_erosion(covered, iterations=3)
    assert covered.mean() > 0.2
    expected = place @ np.array([0.02, -0.01, 0.03])
    for channel in (a, b):
        assert np.abs(channel - expected)[covered].max() < 1e-5  # float32 of values up to 2
    run(sweep, make_engine(lambda x: x[:1] - x[1:], 2, 1))
    assert sweep.finished


def test_what_was_cropped_away_is_background(make_recipe, make_grid, make_engine):
    grid = make_grid((16, 20, 24), (2, 1, 1))
    voxels = np.zeros(grid.shape, np.float32)
    voxels[4:12, 3:15, 6:20] = 5
    steps = [{"step": "crop"}, {"step": "resample", "spacing_mm": [1, 1, 1]}]
    recipe = make_recipe(steps=steps, tiling={"kind": "fitted", "window": [8, 8, 8], "stride": [4, 4, 4]})
    sweep = Sweep(recipe, grid, 1, "MR")
    assert sweep.window_total is None and sweep.window_shape == (8, 8, 8)
    sweep.add(0, voxels)
    run(sweep, make_engine(lambda x: np.full_like(x, 4)))
    outcome = sweep.result()
    assert outcome.prepared.shape == (16, 12, 14)
    assert np.array_equal(outcome.mask, (voxels > 0).astype(np.uint8))


def test_memory_is_bounded_by_what_is_being_blended(make_recipe, make_grid, make_engine):
    peaks = []
    for slices in (40, 120):
        grid = make_grid((slices, 40, 40), (1, 1, 1), (0, 0, 0))
        outcome = read(make_recipe(), grid, field(grid.shape), make_engine(logits))
        peaks.append(outcome.peak_blend_bytes)
        assert outcome.peak_blend_bytes <= 4 * (8 + 2) * 40 * 40  # window's planes, and one kept at each side
    assert peaks[0] == peaks[1]


def test_air_alone_runs_nothing_and_says_so(make_recipe, make_grid, make_engine):
    grid = make_grid((20, 30, 30), (2, 2, 2))
    voxels = np.full(grid.shape, -1000, np.int16)
    recipe = make_recipe(place={"kind": "lungs"})
    engine = make_engine(lambda x: x + 99)
    outcome = read(recipe, grid, voxels, engine)
    assert engine.calls == outcome.windows_run == 0 and outcome.windows_skipped > 0
    assert [n.code for n in outcome.notices] == ["PLACE_EMPTY"] and not outcome.mask.any()


def test_a_place_on_mr_is_ignored_with_a_notice(make_recipe, make_grid, make_engine):
    grid = make_grid((8, 12, 12))
    recipe = make_recipe(place={"kind": "lungs"})
    outcome = read(recipe, grid, field(grid.shape), make_engine(logits), "MR")
    assert [n.code for n in outcome.notices] == ["PLACE_IGNORED"] and outcome.windows_skipped == 0


def test_refusals(make_recipe, make_grid, make_engine):
    grid = make_grid((8, 12, 12), uid="1.2")
    with pytest.raises(RecipeError, match="returns 1 channels"):
        Sweep(make_recipe(labels=[{"index": 1, "name": "a", "channels": [1]}]), grid, 1)
    two = make_recipe(channels=[{"name": "a"}, {"name": "b"}])
    with pytest.raises(RecipeError, match="1 grids"):
        Sweep(two, [grid], 1)
    with pytest.raises(GeometryError, match="frames of reference"):
        Sweep(two, [grid, make_grid((8, 12, 12), uid="1.3")], 1)
    sweep = Sweep(make_recipe(), grid, 1, "CT")
    with pytest.raises(RecipeError, match="shape"):
        sweep.add(0, np.zeros((2, 12, 13)))
    with pytest.raises(RecipeError, match="outside"):
        sweep.add(7, np.zeros((2, 12, 12)))
    with pytest.raises(RecipeError, match="channel 1"):
        sweep.add(0, np.zeros((8, 12, 12)), channel=1)
    sweep.add(0, np.zeros((8, 12, 12)))
    with pytest.raises(RecipeError, match="given before"):
        sweep.add(3, np.zeros((1, 12, 12)))
    window = sweep.ready()[0]
    with pytest.raises(RecipeError, match="output of shape"):
        sweep.accept(window, np.zeros((2, 8, 12, 12), np.float32))
    sweep.accept(window, np.zeros((1, 8, 12, 12), np.float32))
    with pytest.raises(RecipeError, match="not waited for"):
        sweep.accept(window, np.zeros((1, 8, 12, 12), np.float32))


def test_outside_the_grid_windows_hold_the_pad_value(make_recipe, make_grid):
    grid = make_grid((5, 7, 6), (1, 1, 1), (0, 0, 0))
    recipe = make_recipe(
        tiling={"kind": "lattice", "window": [8, 12, 12], "stride": [8, 12, 12], "pad_value": -7.5}
    )
    sweep = Sweep(recipe, grid, 1)
    sweep.add(0, np.full(grid.shape, 400))
    (window,) = sweep.ready()
    buffer = np.full((1, 8, 12, 12), np.nan, np.float32)
    sweep.fill(window, buffer)
    a, b, c = (-s for s in window.start)
    assert np.allclose(buffer[0, a : a + 5, b : b + 7, c : c + 6], 1)
    assert (buffer == -7.5).sum() == 8 * 12 * 12 - 5 * 7 * 6
    assert lattice_grid(grid, "SPL", (1, 1, 1)).shape == grid.shape


@pytest.mark.parametrize("options", [{"antialias": True}, {"interpolation": "nearest"}])
def test_other_interpolations_on_the_lattice_do_not_depend_on_order(
    make_recipe, make_grid, make_engine, options
):
    grid = make_grid((24, 30, 28), (1, 0.7, 0.7))
    voxels = field(grid.shape)
    recipe = make_recipe(steps=[{"step": "resample", "spacing_mm": [2.5, 2, 2], **options}])
    engine = make_engine(lambda x: (x + 400) / 100)
    whole = read(recipe, grid, voxels, engine)
    assert 0.02 < whole.mask.mean() < 0.98
    for how in ("reversed", "shuffled"):
        assert same(whole, read(recipe, grid, voxels, engine, chunks=chunks_of(24, how)))
