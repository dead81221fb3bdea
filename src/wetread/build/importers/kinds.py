"""Tells PyTorch's and MONAI's formats apart by names alone; needs neither of them."""

from __future__ import annotations

from pathlib import Path

from wetread.build.importers.pickles import members

_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".tar")


def is_bundle(path: Path) -> bool:
    """A MONAI bundle: a folder or zip with ``configs/metadata.json``, or TorchScript that carries one."""
    if path.is_dir():
        return (path / "configs" / "metadata.json").is_file()
    return any(
        name in ("extra/metadata.json", "configs/metadata.json") or name.endswith("/configs/metadata.json")
        for name in members(path)
    )


def is_program(path: Path) -> bool:
    """An exported program of PyTorch, whatever its suffix; or a damaged file that is called one."""
    names = members(path)
    return (path.is_file() and path.suffix.lower() == ".pt2") or any(
        name == "serialized_exported_program.json" or (name.startswith("models/") and name.endswith(".json"))
        for name in names
    )


def is_torchscript(path: Path) -> bool:
    """A zip with TorchScript code; or a damaged file that is called one."""
    names = members(path)
    return (path.is_file() and path.suffix.lower() == ".ts") or any(
        name.startswith("code/") and name.endswith(".py") for name in names
    )


def is_checkpoint(path: Path) -> bool:
    """A zip with a pickle in it, or a file that is called as checkpoints are."""
    return path.is_file() and (path.suffix.lower() in _CHECKPOINTS or "data.pkl" in members(path))
