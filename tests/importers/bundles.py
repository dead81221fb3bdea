"""Bundles in MONAI's format, made for tests, and what MONAI itself makes of a case with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

PREPROCESSING: list[dict[str, Any]] = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing", "mode": "bilinear"},
    {
        "_target_": "ScaleIntensityRanged", "keys": "image",
        "a_min": -160, "a_max": 240, "b_min": 0, "b_max": 1, "clip": True,
    },
    {"_target_": "EnsureTyped", "keys": "image", "device": "@device"},
]  # fmt: skip
POSTPROCESSING: list[dict[str, Any]] = [
    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    {
        "_target_": "Invertd", "keys": "pred", "transform": "@preprocessing",
        "orig_keys": "image", "nearest_interp": False, "to_tensor": True,
    },
    {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    {"_target_": "SaveImaged", "keys": "pred", "_disabled_": True, "output_dir": "$@bundle_root + '/eval'"},
]  # fmt: skip


def configuration(**changes: Any) -> dict[str, Any]:
    """``inference.json`` as bundles of MONAI's model zoo have it."""
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "dataset_dir": "/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "spacing": [1.5, 1.5, 2.0],
        "side": 32,
        "network_def": {"_target_": "UNet"},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": PREPROCESSING},
        "inferer": {
            "_target_": "SlidingWindowInferer", "roi_size": "$[@side] * 3", "sw_batch_size": 2,
            "overlap": 0.5, "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": POSTPROCESSING},
    } | changes  # fmt: skip


def description(outputs: list[str], channels: list[str] | None = None) -> dict[str, Any]:
    """``metadata.json``."""
    channels = channels or ["image"]
    return {
        "name": "Organs of the Abdomen",
        "version": "0.5.4",
        "monai_version": "1.6.1",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image", "modality": "CT", "num_channels": len(channels),
                    "spatial_shape": [32, 32, 32], "channel_def": dict(enumerate(channels)),
                }
            },
            "outputs": {
                "pred": {
                    "type": "image", "format": "segmentation", "num_channels": len(outputs),
                    "channel_def": {str(number): name for number, name in enumerate(outputs)},
                }
            },
        },
    }  # fmt: skip


def write_bundle(
    folder: Path, metadata: dict[str, Any], config: dict[str, Any], suffix: str = "json"
) -> Path:
    """The bundle's folder, without weights."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    text = json.dumps(config)  # JSON is YAML too
    (folder / "configs" / f"inference.{suffix}").write_text(text)
    return folder


def blobs(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Smooth blobs between −200 and 300 HU, int16, with noise."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 4)
    smooth /= np.abs(smooth).max()
    return (smooth * 260 + rng.normal(0, 12, shape)).astype(np.int16)


def write_case(path: Path, shape: tuple[int, int, int], affine: np.ndarray, seed: int) -> Path:
    """A NIfTI file."""
    import nibabel

    nibabel.save(nibabel.Nifti1Image(blobs(shape, seed), affine), path)
    return path


def monais_mask(bundle: Path, network: Any, case: Path) -> np.ndarray:
    """What MONAI makes of a case: its own parser, transforms, inferer and inverse; axes as in the file."""
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(next((bundle / "configs").glob("inference.*")))
    parser["device"] = "cpu"
    parser.parse()
    data = parser.get_parsed_content("preprocessing")({"image": str(case)})
    inferer = parser.get_parsed_content("inferer")
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None].as_tensor(), network)[0]
    return np.asarray(parser.get_parsed_content("postprocessing")(data)["pred"])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two masks of booleans."""
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())
