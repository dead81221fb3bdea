"""Bundles read by wetread give the masks that MONAI gives with its own transforms and inferer."""

import numpy as np
import pytest

from tests.importers.bundles import (
    POSTPROCESSING,
    PREPROCESSING,
    configuration,
    description,
    dice,
    monais_mask,
    write_bundle,
    write_case,
)

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore"),  # torch's and MONAI's own
]
torch = pytest.importorskip("torch")
nets = pytest.importorskip("monai.networks.nets")

import wetread  # noqa: E402
from wetread.build.importers import import_model  # noqa: E402
from wetread.build.pack import pack  # noqa: E402
from wetread.reading.flow import ReadOptions  # noqa: E402

UNET = {
    "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [8, 16, 32],
    "strides": [2, 2], "num_res_units": 1, "norm": "instance",
}  # fmt: skip
SWIN = {"in_channels": 1, "out_channels": 2, "feature_size": 12, "spatial_dims": 3}


def turned(spacing, codes_matrix, degrees=0.0):
    """A RAS affine with permuted and flipped axes, and a rotation about the patient's long axis."""
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.array(codes_matrix) * np.array(spacing)
    affine[:3, 3] = (31.7, -12.4, 55.1)
    return affine


PSR = [[0, 0, 1], [-1, 0, 0], [0, 1, 0]]  # array axes towards posterior, superior, right
LPS = [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]


@pytest.fixture(scope="module")
def trained():
    """A UNet that learned in a few steps to tell three ranges of intensity apart."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network = nets.UNet(**UNET)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(40):
        coarse = torch.randn(2, 1, 4, 4, 4)
        image = torch.nn.functional.interpolate(coarse, size=(24, 24, 24), mode="trilinear") * 0.5 + 0.5
        image = (image + 0.05 * torch.randn_like(image)).clamp(0, 1)
        truth = (image > 0.6).long() + (image > 0.8).long()
        loss = torch.nn.functional.cross_entropy(network(image), truth[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.set_num_threads(threads)
    return network.eval()


def wetreads_mask(bundle, case, folder):
    imported = import_model(bundle)
    graph = imported.networks[0].graph.save(folder / "network.onnx")
    package = pack(graph, imported.recipe, folder / "packages")
    reading = wetread.read(
        case, package, options=ReadOptions(engine="openvino", threads=1, allow_failed_gate=True)
    )
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ reading.grid.affine
    return reading.mask, ras


def compare(bundle, network, case, folder, labels):
    import nibabel

    expected = monais_mask(bundle, network, case)
    mask, ras = wetreads_mask(bundle, case, folder)
    into = np.linalg.solve(nibabel.load(case).affine, ras)  # index of the mask to index of the file
    axes = np.abs(into[:3, :3]).argmax(axis=0)
    np.testing.assert_allclose(into, np.eye(4)[[*np.argsort(axes), 3]], atol=1e-4)
    found = mask.transpose(*np.argsort(axes))
    for label, channel in labels.items():
        truth = expected[0] == label if len(expected) == 1 else expected[channel] > 0
        share = truth.mean()
        assert 0.01 < share < 0.5, f"label {label} covers {share:.1%}: nothing to compare"
        score = dice(found == label, truth)
        assert score >= 0.999, f"label {label}: Dice {score:.5f}"


@pytest.mark.parametrize(
    ("name", "affine", "shape"),
    [
        ("permuted", turned((0.93, 2.31, 1.07), PSR), (61, 37, 53)),
        ("oblique", turned((1.13, 0.87, 2.9), LPS, 9.0), (57, 66, 23)),
    ],
)
def test_unet_of_a_folder(tmp_path, trained, name, affine, shape):
    config = configuration(network_def={"_target_": "UNet", **UNET})
    bundle = write_bundle(tmp_path / "bundle", description(["background", "liver", "spleen"]), config)
    torch.save(trained.state_dict(), bundle / "models" / "model.pt")
    case = write_case(tmp_path / f"{name}.nii.gz", shape, affine, seed=3)
    compare(bundle, trained, case, tmp_path, {1: 1, 2: 2})


def test_labels_inverted_by_the_nearest_voxel_statistics_and_crop(tmp_path, trained):
    """Another order of everything: z-score of what is not zero, crop, constant blending, Invert after AsDiscrete."""
    before = [
        *PREPROCESSING[:3],
        {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "select_fn": "$lambda x: x > -300"},
        {"_target_": "Spacingd", "keys": ["image"], "pixdim": [1.23, 1.71, 1.37], "mode": ["bilinear"]},
        {"_target_": "ScaleIntensityRangePercentilesd", "keys": "image", "lower": 1, "upper": 99,
         "b_min": -0.5, "b_max": 1.5, "clip": True},
        {"_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": 0.1, "divisor": 0.9},
        {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [32, 32, 32]},
    ]  # fmt: skip
    after = [
        POSTPROCESSING[0], POSTPROCESSING[2],
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
    ]  # fmt: skip
    config = configuration(
        network_def={"_target_": "monai.networks.nets.UNet", **UNET},
        preprocessing={"_target_": "Compose", "transforms": before},
        postprocessing={"_target_": "Compose", "transforms": after},
        inferer={"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "overlap": 0.25},
    )
    metadata = description(["background", "liver", "spleen"])
    bundle = write_bundle(tmp_path / "bundle", metadata, config, "yaml")
    torch.save({"model": trained.state_dict()}, bundle / "models" / "model.pt")
    case = write_case(tmp_path / "case.nii.gz", (47, 59, 21), turned((1.4, 1.1, 2.2), LPS), seed=5)
    compare(bundle, trained, case, tmp_path, {1: 1, 2: 2})


def test_swin_unetr_through_onnx(tmp_path):
    torch.manual_seed(1)
    network = nets.SwinUNETR(**SWIN).eval()
    with torch.no_grad():  # a head that marks about a fifth
        image = torch.rand(1, 1, 64, 64, 64)
        logits = network(image)[0]
        network.out.conv.conv.bias[0] += torch.quantile((logits[1] - logits[0]).flatten()[::7], 0.8)
    config = configuration(
        network_def={"_target_": "SwinUNETR", **SWIN},
        side=64,
        inferer={"_target_": "SlidingWindowInferer", "roi_size": "$(@side,) * 3", "overlap": 0.25},
    )
    bundle = write_bundle(tmp_path / "bundle", description(["background", "tumour"]), config)
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    case = write_case(tmp_path / "case.nii.gz", (83, 71, 61), turned((1.31, 1.43, 2.1), PSR), seed=4)
    compare(bundle, network, case, tmp_path, {1: 1})
