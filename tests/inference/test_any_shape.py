"""Whatever the shape, orientation, tiling and order of slices: a pointwise network gives back the image."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wetread.geometry import resample
from wetread.inference import Runner, Sweep
from wetread.volume import Grid

CODES = ["SPL", "RAS", "LPS", "IAR", "PIR", "ASL"]


@st.composite
def cases(draw):
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 14), st.integers(1, 14)))
    spacing = draw(st.tuples(*[st.floats(0.5, 4)] * 3))
    origin = draw(st.tuples(*[st.floats(-60, 60)] * 3))
    window = draw(st.tuples(*[st.integers(2, 9)] * 3))
    return {
        "shape": shape,
        "spacing": spacing,
        "origin": origin,
        "orientation": draw(st.sampled_from(CODES)),
        "tiling": {
            "kind": draw(st.sampled_from(["lattice", "fitted"])),
            "window": window,
            "stride": tuple(draw(st.integers(1, w)) for w in window),
            "last": draw(st.sampled_from(["even", "clamped"])),
            "batch": draw(st.integers(1, 3)),
        },
        "new": draw(st.tuples(*[st.floats(0.7, 4)] * 3)),
        "alignment": draw(st.sampled_from(["edges", "first"])),
        "order": draw(st.permutations(range(shape[0]))),
    }


@given(case=cases())
@settings(max_examples=40, deadline=None)
def test_a_pointwise_network_gives_back_the_image(make_recipe, make_engine, case):
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = case["spacing"]
    affine[:, 3] = (*case["origin"], 1)
    grid = Grid(case["shape"], affine)
    voxels = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    step = {"step": "resample", "spacing_mm": case["new"], "alignment": case["alignment"]}
    recipe = make_recipe(orientation=case["orientation"], steps=[step], tiling=case["tiling"])
    sweep = Sweep(recipe, grid, 1, "MR")
    with Runner(sweep, make_engine(lambda x: 4 * x)) as runner:
        for index in case["order"]:
            sweep.add(index, voxels[index : index + 1])
            runner.run()
    outcome = sweep.result()
    prepared = resample(voxels, grid, outcome.prepared)
    probability = 1 / (1 + np.exp(-4.0 * prepared))
    expected = resample(probability, outcome.prepared, grid, fill=0.0)
    sure = np.abs(expected - 0.5) > 1e-4
    assert np.array_equal(outcome.mask[sure], (expected >= 0.5)[sure])
    here = outcome.mask > 0
    assert np.abs(outcome.probability[here] - expected[here]).max(initial=0) < 1e-3  # float16


@given(case=cases())
@settings(max_examples=30, deadline=None)
def test_every_source_voxel_is_answered(make_recipe, make_engine, case):
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = case["spacing"]
    affine[:, 3] = (*case["origin"], 1)
    grid = Grid(case["shape"], affine)
    step = {"step": "resample", "spacing_mm": case["new"], "alignment": case["alignment"]}
    recipe = make_recipe(orientation=case["orientation"], steps=[step], tiling=case["tiling"])
    sweep = Sweep(recipe, grid, 1, "MR")
    sweep.add(0, np.zeros(grid.shape, np.int16))
    with Runner(sweep, make_engine(lambda x: np.full_like(x, 3))) as runner:
        runner.run()
    outcome = sweep.result()
    assert (outcome.mask == 1).all()
    assert np.abs(outcome.probability - 1 / (1 + np.exp(-3))).max() < 1e-3  # float16
