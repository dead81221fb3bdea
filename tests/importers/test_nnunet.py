"""nnU-Net's folders, trained by nnunetv2 here: built, read, and compared with nnUNetPredictor's own masks.

nnUNetPredictor adds logits in float16. At the very edge of an image, where its Gaussian weights are as small
as float16 can be, they carry few digits; a mask may differ there by single voxels. `in_float32` runs the same
code in float32, which shows that nothing else differs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import wetread
from tests.importers.nnunet_training import (
    Design,
    balls,
    plans_of,
    predict,
    quiet,
    save_nifti,
    train,
    variant,
)  # fmt: skip
from wetread.build.importers import Imported, ImportOptions, import_model
from wetread.build.options import BuildOptions
from wetread.build.pipeline import build
from wetread.errors import EngineUnavailableError, GraphError
from wetread.package import NetworkFile, Package, write_package

# one worker trains, and reads what it has trained
pytestmark = [pytest.mark.peer, pytest.mark.xdist_group("nnunet")]
pytest.importorskip("nnunetv2")

CT = Design()
MR = Design(
    channels=("T1", "FLAIR"),
    labels=(("background", 0), ("whole tumour", [1, 2]), ("core", 2)),
    order=(1, 2),
    spacing=(4.0, 1.0, 1.2),
    shape=(14, 48, 44),
    patch=(32, 12, 32),
    strides=((1, 1, 1), (2, 1, 2), (2, 2, 2)),
    transpose=(1, 0, 2),
)
SPACING = (1.2, 1.0, 0.8)
SHAPE = (46, 50, 61)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nnunet")


@pytest.fixture(scope="session")
def ct(root: Path) -> Path:
    """Two folds: the second is the first with other weights, which is enough for an ensemble."""
    import torch

    folder = train(root / "ct", CT, iterations=100)
    checkpoint = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    rng = torch.Generator().manual_seed(1)
    checkpoint["network_weights"] = {
        name: value * (1 + 0.05 * torch.randn(value.shape, generator=rng))
        for name, value in checkpoint["network_weights"].items()
    }
    (folder / "fold_1").mkdir()
    torch.save(checkpoint, folder / "fold_1" / "checkpoint_final.pth")
    return folder


@pytest.fixture(scope="session")
def mr(root: Path) -> Path:
    return train(root / "mr", MR, iterations=100)


def package(folder: Path, out: Path, *, mirror: bool = False, folds: tuple[int, ...] = (0,)) -> Package:
    found = import_model(folder, ImportOptions(mirror=mirror, folds=folds))
    assert found.recipe is not None
    networks = [
        NetworkFile(n.graph.to_bytes(), n.graph.precision, n.graph.inputs, n.graph.outputs, n.stage, n.fold)
        for n in found.networks
    ]
    return write_package(out, found.recipe, networks, force=True)


def read(folder: Path, study: Path, out: Path, **how: Any) -> NDArray[np.uint8]:
    """wetread's mask in the order of nnU-Net's, [k, j, i]."""
    mask = wetread.read(study, package(folder, out, **how)).mask
    assert mask is not None
    return mask.transpose(2, 1, 0)


@contextmanager
def in_float32() -> Iterator[None]:
    """nnUNetPredictor adds logits in float32 instead of float16."""
    import nnunetv2.inference.predict_from_raw_data as module
    import torch

    half, gaussian = torch.half, module.compute_gaussian
    torch.half = torch.float32
    module.compute_gaussian = lambda *args, **named: gaussian(*args, **{**named, "dtype": torch.float32})
    try:
        yield
    finally:
        torch.half, module.compute_gaussian = half, gaussian


def dice(a: NDArray[np.uint8], b: NDArray[np.uint8], label: int) -> float:
    return 2 * ((a == label) & (b == label)).sum() / ((a == label).sum() + (b == label).sum())


def compare(name: str, expected: NDArray[np.uint8], found: NDArray[np.uint8], least: float = 0.999) -> None:
    """Dice of every label, each of which must be there: masks of nothing prove nothing."""
    assert found.shape == expected.shape
    for label in range(1, int(expected.max()) + 1):
        volume = (expected == label).sum()
        assert volume > 200, f"label {label} has {volume} voxels"
        agreement = dice(expected, found, label)
        print(f"{name}: label {label}: Dice {agreement:.5f}, {(expected != found).sum()} voxels differ")
        assert agreement >= least, f"{name}: label {label}: Dice {agreement:.5f}"


def case(path: Path, shape: Sequence[int], spacing: Sequence[float], axes: str = "LPS") -> Path:
    images, _ = balls(shape, spacing, 1, seed=99)
    return save_nifti(path / "case.nii.gz", images[0], spacing, axes)


@pytest.mark.parametrize("mirror", [False, True])
def test_isotropic(ct: Path, root: Path, tmp_path: Path, mirror: bool) -> None:
    study = case(tmp_path, SHAPE, SPACING)
    # the whole way: import, passes, package
    made = build(ct, tmp_path, BuildOptions(imports=ImportOptions(mirror=mirror, folds=(0,))))
    assert made.package.recipe.tiling.mirror_axes == ((0, 1, 2) if mirror else ())
    mask = wetread.read(study, made.package).mask
    assert mask is not None
    found = mask.transpose(2, 1, 0)
    compare("isotropic", predict(ct, [study], root, mirror=mirror), found)
    if not mirror:
        with in_float32():
            expected = predict(ct, [study], root, mirror=mirror)
        compare("isotropic, float32", expected, found, least=0.9998)
    _, truth = balls(SHAPE, SPACING, 1, seed=99)
    assert dice(truth, found, 2) > 0.8  # it has learned what it was shown


VARIANTS: dict[str, tuple[tuple[int, int, int], tuple[float, float, float], str, dict[str, Any]]] = {
    "files in other directions": (SHAPE, SPACING, "RAI", {}),
    "files in another order of axes": (SHAPE, SPACING, "PSL", {}),
    "no resampling": ((40, 50, 51), (1.0, 1.0, 1.0), "LPS", {}),
    "thick slices": ((14, 50, 61), (4.0, 1.0, 0.8), "LPS", {}),
    "thick slices in the plans": (
        SHAPE, SPACING, "LPS", {"spacing": [4.0, 1.0, 1.0], "patch_size": [16, 32, 32]},
    ),
    "transposed": (SHAPE, SPACING, "LPS", {"transpose": (2, 0, 1)}),
    "transposed with thick slices": (
        (14, 84, 90), (4.0, 0.6, 0.55), "LPS",
        {"transpose": (1, 2, 0), "spacing": [1.0, 1.0, 3.5], "patch_size": [32, 32, 16]},
    ),
    "linear by torch": (
        SHAPE, SPACING, "LPS",
        {
            f"resampling_fn_{key}{end}": value
            for key in ("data", "probabilities")
            for end, value in (("", "resample_torch_fornnunet"), ("_kwargs", {"is_seg": False}))
        },
    ),
    "turned to RAS": (SHAPE, SPACING, "PSL", {"image_reader_writer": "NibabelIOWithReorient"}),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(ct: Path, root: Path, tmp_path: Path, name: str) -> None:
    shape, spacing, axes, changes = VARIANTS[name]
    folder = variant(ct, tmp_path / "model", **changes)
    study = case(tmp_path, shape, spacing, axes)
    expected = predict(folder, [study], root, mirror=False)
    if name == "turned to RAS":
        import nibabel
        import SimpleITK as sitk

        # nnU-Net's mask is on the turned grid; its own writer turns it back
        from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

        with quiet(root):
            _, properties = NibabelIOWithReorient().read_images([str(study)])
            NibabelIOWithReorient().write_seg(expected, str(tmp_path / "mask.nii.gz"), properties)
        expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nii.gz")))
        assert nibabel.aff2axcodes(nibabel.load(study).affine) != ("R", "A", "S")
    compare(name, expected, read(folder, study, tmp_path))


def test_an_ensemble_of_folds(ct: Path, root: Path, tmp_path: Path) -> None:
    study = case(tmp_path, SHAPE, SPACING)
    expected = predict(ct, [study], root, mirror=False, folds=(0, 1))
    alone = predict(ct, [study], root, mirror=False)
    assert (expected != alone).sum() > 20  # the second fold has a say
    compare("two folds", expected, read(ct, study, tmp_path, folds=()))


@pytest.mark.parametrize("mirror", [False, True])
def test_two_channels_regions_masks_and_transpose(mr: Path, root: Path, tmp_path: Path, mirror: bool) -> None:
    shape, spacing = (15, 55, 47), (4.0, 0.9, 1.1)
    images, _ = balls(shape, spacing, 2, seed=7)
    (tmp_path / "study").mkdir()
    files = [
        save_nifti(tmp_path / "study" / f"case_{i:04d}.nii.gz", image, spacing, "LAS")
        for i, image in enumerate(images)
    ]
    found = read(mr, tmp_path / "study", tmp_path / "p", mirror=mirror)
    compare("two channels", predict(mr, files, root, mirror=mirror), found)


# ---- what the importer refuses ---------------------------------------------------------------------------


def test_folders_load_without_executing_pickles(ct: Path) -> None:
    found = import_model(ct, ImportOptions(folds=(1, 0)))
    assert [n.fold for n in found.networks] == [1, 0]
    assert found.recipe is not None
    assert found.recipe.tiling.mirror_axes == (0, 1, 2)
    assert {path.name for path in found.sources} == {"plans.json", "dataset.json", "checkpoint_final.pth"}
    assert found.tools.keys() >= {"torch", "dynamic_network_architectures"}
    graph = found.networks[0].graph
    assert graph.inputs[0].shape[1:] == (1, 32, 32, 32)
    assert graph.operators["InstanceNormalization"] >= 5
    assert len(graph.outputs) == 1  # deep supervision is off


def one_fold(ct: Path, folder: Path) -> Path:
    shutil.copytree(ct, folder, ignore=shutil.ignore_patterns("fold_1"))
    return folder


def test_a_truncated_checkpoint_is_named(ct: Path, tmp_path: Path) -> None:
    file = one_fold(ct, tmp_path / "m") / "fold_0" / "checkpoint_final.pth"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(GraphError, match="no whole zip") as caught:
        import_model(tmp_path / "m")
    assert str(file) in caught.value.where


def test_a_checkpoint_with_a_flipped_byte_is_named(ct: Path, tmp_path: Path) -> None:
    file = one_fold(ct, tmp_path / "m") / "fold_0" / "checkpoint_final.pth"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(GraphError) as caught:
        import_model(tmp_path / "m")
    assert str(file) in caught.value.where


class _Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_does_not(ct: Path, tmp_path: Path) -> None:
    import torch

    file = one_fold(ct, tmp_path / "m") / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    torch.save(checkpoint | {"logging": _Harm(tmp_path / "harm")}, file)
    with pytest.raises(GraphError, match="without executing") as caught:
        import_model(tmp_path / "m")
    assert caught.value.code == "NEEDS_TRUST"
    assert not (tmp_path / "harm").exists()


def test_weights_of_another_network_are_refused(ct: Path, tmp_path: Path) -> None:
    def import_with(**arguments: Any) -> Imported:
        folder = one_fold(ct, tmp_path / "m")
        plans = json.loads((folder / "plans.json").read_text())
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(arguments)
        (folder / "plans.json").write_text(json.dumps(plans))
        try:
            return import_model(folder)
        finally:
            shutil.rmtree(folder)

    with pytest.raises(GraphError, match="do not fit the network"):
        import_with(features_per_stage=[8, 16, 24])
    with pytest.raises(GraphError, match=r"'os\.system'"):
        import_with(nonlin="os.system")
    with pytest.raises(GraphError, match="cannot be made"):
        import_with(surprise=1)


@pytest.mark.parametrize("class_name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_plans_of_the_old_format_give_the_network_that_nnunet_makes_of_them(
    tmp_path: Path, class_name: str
) -> None:
    from wetread.build.importers.nnunet import build_network
    from wetread.build.importers.nnunet_plans import Folder

    plans = plans_of(CT)
    configuration = plans["configurations"]["3d_fullres"]
    del configuration["architecture"]
    configuration |= {
        "UNet_class_name": class_name, "UNet_base_num_features": 8, "unet_max_num_features": 16,
        "n_conv_per_stage_encoder": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2],
        "num_pool_per_axis": [2, 2, 2], "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3]] * 3,
    }  # fmt: skip
    ours = build_network(Folder(tmp_path, plans, {}).configuration("3d_fullres").architecture(), 1, 3)
    with quiet(tmp_path):
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        told = PlansManager(plans).get_configuration("3d_fullres")
        theirs = get_network_from_plans(
            # the module that nnU-Net names for the residual one is gone; its search would import all others
            told.network_arch_class_name.replace("residual_unet", "unet"),
            told.network_arch_init_kwargs,
            told.network_arch_init_kwargs_req_import,
            1,
            3,
            deep_supervision=False,
        )
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in ours.state_dict().items()} == shapes


def test_an_architecture_whose_package_is_missing_says_what_to_install(tmp_path: Path) -> None:
    from wetread.build.importers.nnunet import build_network
    from wetread.build.importers.nnunet_plans import Architecture

    name = "dynamic_network_architectures.architectures.primus.PrimusS"
    with pytest.raises(EngineUnavailableError, match="timm") as caught:
        build_network(Architecture(name, {}, (), "plans.json"), 1, 2)
    assert "pip install" in caught.value.todo
