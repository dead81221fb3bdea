"""Turns the published MeshNet-26 checkpoint into a wetread package: python build.py meshnet26.pt -o models.

Needs the extra `torch`; reading with the package afterwards does not. With ``--check T2.nii.gz`` the mask is
also computed in PyTorch float32 and compared with the reading's.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import meshnet
import nibabel
import numpy as np
import torch

import wetread
from wetread.build.pack import pack

HERE = Path(__file__).parent


def export(network: torch.nn.Module, path: Path) -> None:
    """Writes float32 ONNX with free batch and spatial sizes."""
    free = {0: "n", 2: "i", 3: "j", 4: "k"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter announces its successor
        torch.onnx.export(
            network,
            (torch.zeros(1, 1, 32, 32, 32),),
            str(path),
            input_names=["t2"],
            output_names=["logits"],
            dynamic_axes={"t2": free, "logits": free},
            opset_version=17,
            do_constant_folding=False,  # leaves the batch norms for `wetread build` to fold
            dynamo=False,
        )


def torch_mask(network: torch.nn.Module, image: Path) -> np.ndarray:
    """The mask as the checkpoint's authors compute it: min-max to [0, 1], native RAS grid, softmax > 0.5."""
    volume = nibabel.as_closest_canonical(nibabel.load(image))
    x = torch.from_numpy(np.asarray(volume.dataobj, dtype=np.float32))
    x = (x - x.min()) / (x.max() - x.min())
    with torch.inference_mode():
        probability = torch.softmax(network(x[None, None]), dim=1)[0, 1]
    return (probability > 0.5).numpy()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a ∩ b| / (|a| + |b|)."""
    return float(2 * np.logical_and(a, b).sum() / max(1, a.sum() + b.sum()))


def main() -> None:
    """Builds the package; with --check compares its reading with PyTorch's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("models"))
    parser.add_argument("--check", type=Path, metavar="T2.nii.gz")
    args = parser.parse_args()
    network = meshnet.load(args.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        export(network, Path(folder) / "model.onnx")
        package = pack(Path(folder) / "model.onnx", HERE / "recipe.json", args.out, force=True)
    print(f"wrote {package.path}")
    if args.check:
        reading = wetread.read(args.check, package.path)
        # the reading's mask lies on the file's own grid; PyTorch's is in RAS order
        image = nibabel.load(args.check)
        mask = nibabel.Nifti1Image((reading.mask > 0).astype(np.uint8), image.affine)
        ours = np.asarray(nibabel.as_closest_canonical(mask).dataobj) > 0
        theirs = torch_mask(network, args.check)
        print(f"voxels: wetread {ours.sum()}, PyTorch float32 {theirs.sum()}")
        print(f"Dice {dice(ours, theirs):.6f}")
        for finding in reading.findings:
            print(f"finding {finding.number}: {finding.volume_ml:.3f} ml at {finding.centroid_lps_mm} mm LPS")


if __name__ == "__main__":
    main()
