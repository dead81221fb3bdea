"""The same numbers as MONAI's transforms and sliding windows."""

import numpy as np
import pytest

from wetread.inference import Sweep, run
from wetread.inference.labels import LabelWriter
from wetread.inference.prepare import prepare
from wetread.volume import Grid

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore"),  # torch's and MONAI's own
]


@pytest.fixture(scope="module")
def network():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(8, 3, 3, padding=1)
    )
    return net.eval()


def forward(network, x):
    import torch

    with torch.no_grad():
        return network(torch.from_numpy(x[None]))[0].numpy()


@pytest.mark.parametrize(
    ("blending", "sigma", "floor"),
    [("constant", 0.125, 0.0), ("gaussian", 0.25, 0.0), ("gaussian", 0.125, 1e-3)],
)
@pytest.mark.parametrize("shape", [(30, 41, 37), (20, 10, 33)])
def test_clamped_windows_equal_monais_inferer(
    make_recipe, make_engine, network, monkeypatch, blending, sigma, floor, shape
):
    # MONAI raises importance below 1e-3 to 1e-3; at sigma 0.25 none is below
    torch = pytest.importorskip("torch")
    inferers = pytest.importorskip("monai.inferers")
    voxels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tiling = {"kind": "fitted", "last": "clamped", "window": [16, 16, 16], "stride": [8, 8, 8]}
    recipe = make_recipe(
        steps=[],
        tiling={**tiling, "blending": blending, "sigma": sigma, "floor": floor},
        activation="softmax",
        labels=[{"index": k, "name": str(k), "channels": [k]} for k in (1, 2)],
    )
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = affine[3, 3] = 1
    logits = np.full((3, *shape), np.nan, np.float32)
    take = LabelWriter.take

    def spy(self, first, last, outputs):
        logits[:, first:last] = outputs
        take(self, first, last, outputs)

    monkeypatch.setattr(LabelWriter, "take", spy)
    sweep = Sweep(recipe, Grid(shape, affine), 3)
    sweep.add(0, voxels)
    run(sweep, make_engine(lambda x: forward(network, x), 1, 3))
    inferer = inferers.SlidingWindowInferer(16, overlap=0.5, mode=blending, sigma_scale=sigma)
    with torch.no_grad():
        expected = inferer(torch.from_numpy(voxels[None, None]), network)[0].numpy()
    assert np.abs(logits - expected).max() < 5e-6  # float32 sums of 8 logits of about 1
    top = np.sort(expected, axis=0)
    sure = top[-1] - top[-2] > 1e-4
    assert sure.mean() > 0.99
    assert np.array_equal(sweep.result().mask[sure], expected.argmax(axis=0)[sure])


def as_monai(voxels, grid):
    """MONAI's tensor [x, y, z] with an affine in RAS."""
    torch = pytest.importorskip("torch")
    data = pytest.importorskip("monai.data")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine @ np.eye(4)[[2, 1, 0, 3]]
    return data.MetaTensor(
        torch.from_numpy(voxels.transpose(2, 1, 0)[None].copy()), affine=torch.tensor(affine)
    )


def test_spacing_and_intensity_equal_monais_transforms(make_recipe, make_grid):
    transforms = pytest.importorskip("monai.transforms")
    grid = make_grid((20, 30, 34), (2.5, 0.8, 0.7))
    voxels = np.random.default_rng(1).normal(-300, 400, grid.shape).astype(np.float32)
    chain = transforms.Compose(
        [
            transforms.Orientation(axcodes="RAS"),
            transforms.Spacing(pixdim=(1.0, 1.2, 1.5), mode="bilinear", padding_mode="border"),
            transforms.ScaleIntensityRange(-600, 400, 0, 1, clip=True),
        ]
    )
    expected = chain(as_monai(voxels, grid))
    recipe = make_recipe(
        orientation="RAS",
        steps=[
            {"step": "resample", "spacing_mm": [1.0, 1.2, 1.5], "alignment": "first"},
            {"step": "clip", "lower": -600, "upper": 400},
            {"step": "scale", "lower": -600, "upper": 400},
        ],
        tiling={"kind": "whole"},
    )
    array, prepared = prepare(recipe, [voxels], grid)
    assert array.shape == tuple(expected.shape)
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ prepared.affine
    assert np.abs(ras - expected.affine.numpy()).max() < 1e-6
    assert np.abs(array - expected.numpy()).max() < 1e-4  # MONAI samples in float32 coordinates


@pytest.mark.parametrize("nonzero", [False, True])
def test_statistics_equal_monais(make_recipe, make_grid, nonzero):
    transforms = pytest.importorskip("monai.transforms")
    grid = make_grid((10, 12, 14))
    voxels = np.maximum(np.random.default_rng(1).normal(10, 40, grid.shape), 0).astype(np.float32)
    recipe = make_recipe(steps=[{"step": "zscore", "nonzero": nonzero}], tiling={"kind": "whole"})
    array, _ = prepare(recipe, [voxels], grid)
    expected = transforms.NormalizeIntensity(nonzero=nonzero, channel_wise=True)(voxels[None])
    assert np.abs(array - np.asarray(expected)).max() < 1e-5
    step = {"step": "minmax", "lower_percentile": 1, "upper_percentile": 99, "clip": True}
    array, _ = prepare(make_recipe(steps=[step], tiling={"kind": "whole"}), [voxels], grid)
    expected = transforms.ScaleIntensityRangePercentiles(1, 99, 0, 1, clip=True)(voxels[None])
    assert np.abs(array - np.asarray(expected)).max() < 1e-5


def test_crop_and_pad_equal_monais(make_recipe, make_grid):
    transforms = pytest.importorskip("monai.transforms")
    grid = make_grid((10, 12, 14))
    voxels = np.zeros(grid.shape, np.float32)
    voxels[3:8, 2:9, 5:12] = np.random.default_rng(0).random((5, 7, 7)) + 1
    steps = [{"step": "crop", "margin": 1}, {"step": "pad", "multiple": [4, 4, 4]}]
    array, _ = prepare(make_recipe(steps=steps, tiling={"kind": "whole"}), [voxels], grid)
    cropped = transforms.CropForeground(margin=1, allow_smaller=True)(voxels[None])
    expected = transforms.DivisiblePad(4)(cropped)
    assert np.array_equal(array, np.asarray(expected))
